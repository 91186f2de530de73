"""Checkpoints of a running stage and outcomes of finished ones: written atomically, read without pickle."""

import logging
import shlex
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crossdistill.errors import RunError
from crossdistill.runtime.files import atomic_folder, read_sealed, write_sealed
from crossdistill.runtime.hashing import file_hash
from crossdistill.runtime.tensor_file import load_weights, write_tensors

log = logging.getLogger("crossdistill")

WEIGHTS, STATE, ABOUT = "weights.safetensors", "state.pt", "about.json"
OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a stage at a step: tensors by name, and all other state that the next step depends on."""

    stage: int
    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write one checkpoint, then delete all but the newest `keep`.

    Raises:
        StorageError: it could not be written; the earlier ones are intact.
    """
    name = f"{checkpoint.stage:02d}-{checkpoint.epoch:05d}-{checkpoint.step:07d}"
    # A checkpoint of the same position is bit-identical, or it is damaged and is replaced.
    shutil.rmtree(folder / name, ignore_errors=True)
    with atomic_folder(folder / name) as temporary:
        write_tensors(temporary / WEIGHTS, _separate(checkpoint.tensors))
        try:
            torch.save(dict(checkpoint.state), temporary / STATE)
        except RuntimeError as error:
            # torch reports a failed write as a RuntimeError.
            raise OSError(f"{STATE} was not written: {' '.join(str(error).split())}") from error
        about = {"stage": checkpoint.stage, "epoch": checkpoint.epoch, "step": checkpoint.step}
        hashes = {file: file_hash(temporary / file) for file in (WEIGHTS, STATE)}
        write_sealed(temporary / ABOUT, {**about, "files": hashes})
    for old in sorted(_complete(folder))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None; a damaged one is skipped with a warning."""
    for path in sorted(_complete(folder), reverse=True):
        try:
            about = read_sealed(path / ABOUT)
            for file, wanted in about.get("files", {}).items():
                if file_hash(path / file) != wanted:
                    raise ValueError(f"{file} does not match its hash")
            tensors = load_file(path / WEIGHTS)
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path / STATE, weights_only=True)
            return Checkpoint(about["stage"], about["epoch"], about["step"], tensors, state)
        except Exception as error:  # the three readers may raise anything for damaged files
            log.warning("%s is damaged (%s: %s); it is skipped", path, type(error).__name__, error)
    return None


def newest_name(folder: Path) -> str | None:
    """The name of the newest complete checkpoint."""
    return max((path.name for path in _complete(folder)), default=None)


def drop_checkpoints(folder: Path) -> None:
    """Delete all checkpoints, once the outcome of their stage is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[0-9]*-*") if (path / ABOUT).is_file()]


def flatten(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of all parameters and buffers on the CPU, as `module/name`."""
    return {name: value.detach().cpu().clone() for name, value in moving(modules).items()}


def moving(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters and buffers as `module/name`, not copied."""
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: on the CPU, contiguous, and without shared memory."""
    separated: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        # Tied weights are written twice, and a slice is written without the tensor that it is a part of.
        shares = storage.data_ptr() in seen or storage.nbytes() != plain.nbytes
        seen.add(storage.data_ptr())
        separated[name] = plain.clone() if shares else plain
    return separated


def restore(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load tensors named `module/name` into their modules, strictly."""
    for name, module in modules.items():
        start = f"{name}/"
        module.load_state_dict({key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)})


def save_outcome(path: Path, modules: Mapping[str, nn.Module], about: Mapping[str, Any]) -> None:
    """Write the outcome of a stage: one safetensors file per module, and `outcome.json` with their hashes.

    Raises:
        StorageError: it could not be written.
    """
    with atomic_folder(path) as temporary:
        hashes = {}
        for name, module in modules.items():
            file = temporary / f"{name}.safetensors"
            write_tensors(file, _separate(module.state_dict()))
            hashes[name] = file_hash(file)
        write_sealed(temporary / OUTCOME, {**about, "files": hashes})


def load_outcome(path: Path, modules: Mapping[str, nn.Module], key: str) -> dict[str, Any] | None:
    """Load the outcome of a stage into its modules and return `outcome.json`; None if there is no outcome.

    Raises:
        RunError: it belongs to another stage, or a file is damaged.
    """
    file = path / OUTCOME
    if not file.is_file():
        return None
    try:
        about = read_sealed(file)
        stored_key, stage, files = about["key"], about["stage"], dict(about["files"])
        counts = [about[name] for name in ("seconds", "peak_memory_mb", "metrics")]
        if not all(isinstance(count, int | float) and count >= 0 for count in counts) or type(counts[2]) is not int:
            raise TypeError("wanted numbers in seconds, peak_memory_mb and metrics")
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{file} is damaged: {type(error).__name__}: {error}; {_again(path)}") from error
    if stored_key != key:
        raise RunError(
            f"{path} holds the result of another stage {stage!r}: the recipe is the same, but the data, the initial "
            "weights, or the code of your networks or methods have changed. Start anew in another folder"
        )
    for name, module in modules.items():
        weights = path / f"{name}.safetensors"
        if not weights.is_file() or file_hash(weights) != files.get(name):
            raise RunError(f"{weights} is damaged: its hash is not the one in {OUTCOME}; {_again(path)}")
        load_weights(module, weights, f"{name!r} of stage {stage!r}")
    return about


def _again(path: Path) -> str:
    return f"remove its folder (rm -r {shlex.quote(str(path))}) and go on with --resume, which trains that stage again"
