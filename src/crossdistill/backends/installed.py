"""Published weights inside an installed package, found without importing it, and what networks of waves share."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.backends.pretrained import Body, Loaded
from crossdistill.data.dataset import Licence
from crossdistill.data.rendering import SoundRendering
from crossdistill.errors import MissingExtraError, SettingError, nearest
from crossdistill.losses.hidden_states import valid_frames

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


def loaded(body: Body, path: Path, options: Mapping[str, Any], dtype: torch.dtype, licence: Licence | None) -> Loaded:
    """A network of waves with weights from a file; the option `seconds` is the length that it reads, from the start."""
    status = path.stat()
    return Loaded(
        body=body.to(dtype),
        kind="audio",
        rendering=SoundRendering(rate=RATE, kind="wave", seconds=options.get("seconds"), align="start"),
        classes=None,
        named=False,
        licence=licence,
        stamp=str([str(path.resolve()), status.st_size, status.st_mtime_ns]),
    )


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
    return waves * valid_frames(lengths, waves.shape[1]), lengths
