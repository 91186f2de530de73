"""Trying optional packages for real: absent, broken and why, or fine.

Each import runs in a child process of its own: one that fails half way, or takes the process down with it, does so
there, and nothing stays behind here.
"""

import importlib.metadata
import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "missing", "broken"]

_WORKER = Path(__file__).with_name("package_check_worker.py")


@dataclass(frozen=True, slots=True)
class Package:
    """Something that may be imported here: `probe` is the module that is tried, `attribute` a part that loads late.

    `extra` is "core", the name of an extra, or empty where nothing of ours asks for the package by itself.
    """

    module: str
    distribution: str
    extra: str
    purpose: str
    probe: str = ""
    attribute: str = ""

    @property
    def install(self) -> str:
        """The command that installs it."""
        if self.extra == "core":
            return "pip install crossdistill"
        return f'pip install "crossdistill[{self.extra}]"' if self.extra else ""


PACKAGES = (
    Package("torch", "torch", "core", "everything"),
    Package("numpy", "numpy", "core", "arrays, banks"),
    Package("safetensors", "safetensors", "core", "weights on disk", probe="safetensors.torch"),
    Package("pydantic", "pydantic", "core", "recipes"),
    Package("yaml", "PyYAML", "core", "recipes"),
    Package("torchmetrics", "torchmetrics", "core", "metrics other than accuracy"),
    Package("espeakng_loader", "espeakng-loader", "demo", "speech of av-digits", attribute="get_library_path"),
    Package("sklearn", "scikit-learn", "demo", "handwriting of av-digits", probe="sklearn.datasets"),
    Package("soundfile", "soundfile", "audio", "sound files"),
    Package("soxr", "soxr", "audio", "resampling"),
    Package("PIL", "pillow", "image", "picture files", probe="PIL.Image"),
    Package("tensorboard", "tensorboard", "tensorboard", "curves of a run", probe="torch.utils.tensorboard"),
    Package("wandb", "wandb", "wandb", "curves of a run"),
    Package("mlflow", "mlflow", "mlflow", "curves of a run"),
    Package("transformers", "transformers", "transformers", "teachers", attribute="BertModel"),
    Package("timm", "timm", "timm", "teachers, students"),
    Package("open_clip", "open_clip_torch", "clip", "CLIP teachers"),
    Package("ray", "ray", "ray", "grids of runs on Ray"),
    Package("submitit", "submitit", "slurm", "grids of runs on Slurm"),
    Package("torchvision", "torchvision", "", "needed by timm and open_clip only"),
    Package("torchaudio", "torchaudio", "", "needed by nothing here"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What trying one package gave: `reason` says why it is not ok, `remedy` what to do."""

    module: str
    extra: str
    purpose: str
    state: State
    version: str = ""
    reason: str = ""
    remedy: str = ""


def version(distribution: str) -> str:
    """Installed version, empty when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def attempt(package: Package, timeout_s: float) -> Finding:
    """Try one package; an import that takes longer than `timeout_s` counts as broken."""
    found = version(package.distribution)
    spec = importlib.util.find_spec(package.module)
    # A folder that merely has the name is no package: it has a search location, but no origin and no version.
    if spec is None or (spec.origin is None and not found):
        return _finding(package, "missing", "", "not installed", package.install)
    arguments = [package.probe or package.module, package.attribute, json.dumps(sys.path)]
    command = [sys.executable, str(_WORKER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return _finding(package, "broken", found, f"importing it took more than {timeout_s:g} s", _repair(package))
    if done.returncode == 0:
        return _finding(package, "ok", found)
    said = re.search(r"^said:(.*)$", done.stdout, re.MULTILINE)
    if said is None:
        return _finding(package, "broken", found, _death(done.returncode), _repair(package))
    unloadable = re.findall(r"^library:(.*)$", done.stdout, re.MULTILINE)
    return _finding(package, "broken", found, *_explained(package, json.loads(said.group(1)), unloadable))


def _finding(package: Package, state: State, found: str, reason: str = "", remedy: str = "") -> Finding:
    return Finding(package.module, package.extra, package.purpose, state, found, reason, remedy)


def _explained(package: Package, said: dict[str, Any], unloadable: Sequence[str]) -> tuple[str, str]:
    """Reason and remedy of a failed import, from what the child said."""
    first_line = (str(said["text"]).strip().splitlines() or [""])[0]
    reason = f"{said['error']}: {first_line}"
    missing = str(said["missing"] or "").split(".")[0]
    if missing and missing != package.module:
        return reason, f"pip install {missing}"
    # The last package on the way that can fail by itself is the culprit, not the one that was asked for.
    known = {other.module for other in PACKAGES} - {"torch", "numpy", package.module}
    culprit = next((name for name in reversed(said["through"]) if name in known), package.module)
    if culprit != package.module:
        reason = f"it imports {culprit}, which fails: {reason}"
    if not unloadable:
        return reason, _repair(package)
    pattern = r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object"
    absent = sorted({name for line in unloadable for name in re.findall(pattern, line)})
    cuda = any(re.match(r"lib(c10_cuda|torch_cuda|cu|nv)", name) for name in absent)
    lack = f"{', '.join(absent)} not found" if absent else unloadable[0]
    kind = "built for CUDA, which this torch is not" if cuda else "built for another torch or another system"
    remedy = f"pip uninstall {culprit}, or install the build of {culprit} that belongs to torch {version('torch')}"
    return f"{reason} ({lack}: {kind})", remedy


def _repair(package: Package) -> str:
    return f"pip install --force-reinstall {package.distribution}, or pip uninstall {package.distribution}"


def _death(returncode: int) -> str:
    if returncode < 0:
        return f"importing it kills the process ({signal.Signals(-returncode).name})"
    return f"importing it ends the process (exit status {returncode})"
