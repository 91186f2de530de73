"""Checks of packages by a real import: missing, broken with the reason, or ok.

Each import runs in a child process, which runs this file as a script, so that an import that fails half way or ends
its process does not affect this process.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

MOST_LIBRARIES = 200
"""Maximum number of shared libraries of a broken package that are loaded one by one."""
PREFIX = "package-check:"
"""Start of the child's lines, since a package may print too."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package to check: `probe` is the module to import, `attribute` a part of it that loads late.

    `extra` is "core", the name of an extra, or empty where no extra of crossdistill names the package.
    """

    module: str
    distribution: str
    extra: str
    purpose: str
    probe: str = ""
    attribute: str = ""


PACKAGES = (
    Package("torch", "torch", "core", "networks and training"),
    Package("numpy", "numpy", "core", "arrays and banks"),
    Package("safetensors", "safetensors", "core", "weights on disk", probe="safetensors.torch"),
    Package("pydantic", "pydantic", "core", "recipes"),
    Package("yaml", "PyYAML", "core", "recipes"),
    Package("torchmetrics", "torchmetrics", "core", "metrics other than accuracy"),
    Package("espeakng_loader", "espeakng-loader", "demo", "speech of av-digits", attribute="get_library_path"),
    Package("sklearn", "scikit-learn", "demo", "handwriting of av-digits", probe="sklearn.datasets"),
    Package("soundfile", "soundfile", "audio", "sound files"),
    Package("soxr", "soxr", "audio", "resampling"),
    Package("PIL", "pillow", "image", "picture files", probe="PIL.Image"),
    Package("tokenizers", "tokenizers", "text", "texts through a teacher's tokenizer", attribute="Tokenizer"),
    Package("av", "av", "video", "sound of m4a, aac, mp4 and other files"),
    Package("pyarrow", "pyarrow", "parquet", "tables as parquet", probe="pyarrow.parquet"),
    Package("tensorboard", "tensorboard", "tensorboard", "curves of a run", probe="torch.utils.tensorboard"),
    Package("wandb", "wandb", "wandb", "curves of a run"),
    Package("mlflow", "mlflow", "mlflow", "curves of a run"),
    Package("transformers", "transformers", "transformers", "teachers", attribute="BertModel"),
    Package("timm", "timm", "timm", "teachers, students"),
    Package("open_clip", "open_clip_torch", "clip", "CLIP teachers"),
    Package("onnxruntime", "onnxruntime", "onnx", "teachers from ONNX files"),
    Package("peft", "peft", "lora", "LoRA adapters"),
    Package("ray", "ray", "ray", "grids of runs on Ray"),
    Package("submitit", "submitit", "slurm", "grids of runs on Slurm"),
    Package("torchvision", "torchvision", "", "used by timm and open_clip only"),
    Package("torchaudio", "torchaudio", "", "not used by crossdistill"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one package: `reason` is the cause of a failure, `remedy` the suggested command."""

    module: str
    extra: str
    purpose: str
    state: Literal["ok", "missing", "broken"]
    version: str = ""
    reason: str = ""
    remedy: str = ""


def attempt(package: Package, timeout_s: float) -> Finding:
    """Check one package; an import that takes longer than `timeout_s` seconds counts as broken."""
    about = (package.module, package.extra, package.purpose)
    name, version = package.distribution, _version(package.distribution)
    spec = importlib.util.find_spec(package.module)
    # A folder of the same name is not the package: it has a search location, but no origin and no version.
    if spec is None or (spec.origin is None and not version):
        extra = "crossdistill" if package.extra == "core" else f'"crossdistill[{package.extra}]"'
        return Finding(*about, "missing", "", "not installed", f"pip install {extra}" if package.extra else "")
    broken = partial(
        Finding, *about, "broken", version, remedy=f"pip install --force-reinstall {name}, or pip uninstall {name}"
    )
    child = [sys.executable, __file__, package.probe or package.module, package.attribute, json.dumps(sys.path)]
    try:
        done = subprocess.run(child, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return broken(f"importing it took more than {timeout_s:g} s")
    if done.returncode == 0:
        return Finding(*about, "ok", version)
    if lines := re.findall(rf"^{PREFIX}(.*)$", done.stdout, re.MULTILINE):
        return broken(**_explained(package, *map(json.loads, lines)))
    if done.returncode < 0:
        return broken(f"importing it kills the process ({signal.Signals(-done.returncode).name})")
    return broken(f"importing it ends the process (exit status {done.returncode})")


def _version(distribution: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return ""


def _explained(package: Package, error: dict[str, Any], *unloadable: str) -> dict[str, str]:
    """The reason of a failed import, from the child's lines, and a remedy where a new installation is not enough."""
    missing = (error["missing"] or package.module).partition(".")[0]
    if missing != package.module:
        return {"reason": error["reason"], "remedy": f"pip install {missing}"}
    # The cause is the last package in the traceback that can fail by itself, not the package that was checked.
    known = {other.module for other in PACKAGES} - {"torch", "numpy", package.module}
    culprit = next((name for name in reversed(error["through"]) if name in known), package.module)
    reason = error["reason"]
    if culprit != package.module:
        reason = f"it imports {culprit}, which fails: {reason}"
    if not unloadable:
        return {"reason": reason}
    absent = set(re.findall(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object", "\n".join(unloadable)))
    cuda = any(re.match(r"lib(c10_cuda|torch_cuda|cu|nv)", name) for name in absent)
    fault = f"{', '.join(sorted(absent))} not found" if absent else unloadable[0]
    cause = "built for CUDA, but this torch is not" if cuda else "built for another torch or another system"
    remedy = f"pip uninstall {culprit}, or install its build for torch {_version('torch')}"
    return {"reason": f"{reason} ({fault}: {cause})", "remedy": remedy}


def _try_import(module: str, attribute: str) -> int:
    """In the child: import, print a line for its error and for each library that fails to load, return the exit status.

    The last error often hides the cause: a shared library of the package, or of a package that it imports.
    """
    try:
        part: Any = importlib.import_module(module)
        part = getattr(part, attribute) if attribute else part
        if attribute == "get_library_path":
            ctypes.CDLL(part())
        return 0
    except BaseException as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = dict.fromkeys(frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames)
        through = [name for name in names if name not in {"__main__", "importlib", "", "ctypes"}]
        first_line = str(error).strip().partition("\n")[0]
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        _report({"reason": f"{type(error).__name__}: {first_line}", "through": through, "missing": missing})
    packages = dict.fromkeys([module.partition(".")[0], *through])
    libraries = [path for name in packages for entry in sys.path for path in (Path(entry) / name).rglob("*.so*")]
    if libraries:
        # This loads the libraries of torch into the process, as an import of the package does.
        with contextlib.suppress(Exception):
            importlib.import_module("torch")
    for library in sorted(libraries)[:MOST_LIBRARIES]:
        try:
            ctypes.CDLL(str(library))
        except OSError as unloadable:
            _report(" ".join(str(unloadable).split()))
    return 1


def _report(value: Any) -> None:
    # Written at once, since loading a library may end the process.
    os.write(1, f"\n{PREFIX}{json.dumps(value)}\n".encode())


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[3])
    sys.exit(_try_import(*sys.argv[1:3]))
