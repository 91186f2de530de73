"""Public checkpoints of picture networks: RepDistiller's and mdistiller's `ckpt_epoch_240.pth`, and torchvision's.

A checkpoint is a file of torch.save with the weights under the key "model", or the weights alone. The archive
`cifar_teachers.tar` has one folder for each network, such as `resnet32x4_vanilla`. Nothing of an archive is extracted,
and no pickled code runs.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import DataError, ShapeError, nearest
from crossdistill.runtime.files import file_fault

ENDINGS = (".pth", ".pt", ".tar")
"""Endings of checkpoints; weights in other files are safetensors."""
MOST_BYTES = 2**32
"""Largest checkpoint in an archive."""
COUNTER = ".num_batches_tracked"
LISTED = 3


def is_checkpoint(path: Path | None) -> bool:
    """Whether a file of weights is a checkpoint of torch.save, or an archive of such checkpoints, by its ending."""
    return path is not None and path.name.lower().endswith(ENDINGS)


def keeps_weights(path: Path | None, tune: str | None) -> bool:
    """Whether a teacher with this file of weights and this `tune` is a public checkpoint that stays as it is."""
    return is_checkpoint(path) and tune in (None, "frozen")


def load_checkpoint(module: nn.Module, path: Path, model: str) -> None:
    """Load a public checkpoint into a network, strictly; `model` is its name in the table of models.

    Counters of batches, which files of PyTorch before 0.4.1 lack, become zero.

    Raises:
        DataError: the file or its archive cannot be read or is unsafe; an archive has no such network.
        ShapeError: weights are missing, unknown, or of another shape; names them.
    """
    fill(module, read_checkpoint(path, model), path, model)


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Give a network these weights of a file, all of them and no others; see `load_checkpoint` for counters.

    Raises:
        ShapeError: weights are missing, unknown, or of another shape; names them.
    """
    wanted = module.state_dict()
    state = {**state, **{name: torch.zeros_like(value) for name, value in wanted.items() if _old(name, state)}}
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    said = [f"{what}: {_listed(names)}" for what, names in faults.items() if names]
    if said:
        hint = "; the classes of the checkpoint are not those of the data" if _other_classes(faults) else ""
        raise ShapeError(f"the weights in {path} do not fit {model}; {'; '.join(said)}{hint}")
    module.load_state_dict(state)


def read_checkpoint(path: Path, model: str, key: str = "model") -> dict[str, Tensor]:
    """The weights by name, on the CPU: of a file, or of the folder of `model` in an archive.

    They are under `key`, or alone.

    Raises:
        DataError: the file or its archive cannot be read, is unsafe, or has no such network or weights.
    """
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    try:
        if path.name.lower().endswith(".tar") and tarfile.is_tarfile(path):
            with tarfile.open(path, "r:") as archive:
                member = _member(archive, path, model)
                file = archive.extractfile(member)
                assert file is not None
                return _weights(file.read(), f"{path}: {member.name}", key)
        return _weights(path.read_bytes(), str(path), key)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: damaged, or cannot be read: {' '.join(str(error).split())[:200]}") from error


def _member(archive: tarfile.TarFile, path: Path, model: str) -> tarfile.TarInfo:
    """The file of a network in an archive, whose names are all checked.

    Raises:
        DataError: a name leads out of the archive, or it has no file, or several, of this network.
    """
    networks: dict[str, list[tarfile.TarInfo]] = {}
    for member in archive.getmembers():
        parts = PurePosixPath(member.name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0:1]:
            raise DataError(f"{path}: the name {member.name[:200]!r} leads out of the archive; it is not read")
        if member.isfile() and parts.suffix in (".pth", ".pt"):
            networks.setdefault(_model_of(parts), []).append(member)
    if model not in networks:
        raise DataError(f"{path} has no checkpoint of {model}; {nearest(model, sorted(networks))}")
    files = networks[model]
    named = [one for one in files if PurePosixPath(one.name).name == "ckpt_epoch_240.pth"] or files
    if len(named) > 1:
        raise DataError(f"{path} has {len(named)} checkpoints of {model} ({_listed([one.name for one in named])})")
    if named[0].size > MOST_BYTES:
        raise DataError(f"{path}: {named[0].name} has {named[0].size:,} bytes; at most {MOST_BYTES:,}")
    return named[0]


def _model_of(path: PurePosixPath) -> str:
    """The name in the table of models for a checkpoint's folder: `wrn_40_2_vanilla` is cifar-wrn-40-2."""
    folder = path.parent.name.lower().removesuffix("_vanilla").replace("_", "-")
    return f"cifar-{folder}"


def _weights(file: bytes, where: str, key: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except Exception as error:  # the reader may raise anything for damaged files, and refuses other objects
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: damaged, or no checkpoint of tensors and plain values alone: {said}") from error
    state = content.get(key, content) if isinstance(content, Mapping) else content
    tensors = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not tensors or not state:
        kind = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise DataError(f"{where}: wanted weights by name under the key {key!r}, or alone; found {kind or 'nothing'}")
    return dict(state)


def _old(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a counter is missing in a file that has none at all, as files of PyTorch before 0.4.1."""
    return name.endswith(COUNTER) and not any(key.endswith(COUNTER) for key in state)


def _other_classes(faults: Mapping[str, list[str]]) -> bool:
    shapes = faults["of another shape"]
    heads = all(text.split(".")[0] in ("fc", "linear", "classifier") for text in shapes)
    return bool(shapes) and heads and not faults["missing"] and not faults["unknown"]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
