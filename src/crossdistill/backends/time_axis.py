"""Frames at the layers of networks of sound that read a window of fixed length: Whisper's encoder, and AST."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crossdistill.backends.frontends import KaldiFrontend, WhisperFrontend
from crossdistill.backends.pretrained import TimeAxis

_SAMPLES: ContextVar[int | None] = ContextVar("samples of the longest clip of a pass", default=None)
"""Not an attribute: a network whose attributes change as it runs has no key."""


@contextmanager
def of_clips(samples: int) -> Iterator[None]:
    """Within it, layers have as many frames as clips of at most so many samples."""
    token = _SAMPLES.set(samples)
    try:
        yield
    finally:
        _SAMPLES.reset(token)


class WindowAxis(TimeAxis):
    """The frames of Whisper's encoder: one for each two hops of its spectrogram; those after the clip are left out."""

    def __init__(self, samples: int, hop: int) -> None:
        self.samples, self.hop = samples, hop
        self.total = samples // (2 * hop)

    def frames(self, lengths: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """One for each begun two hops, as the mask of its feature extractor and its second convolution have it."""
        return -(-lengths // (2 * self.hop))

    def read(self, states: Float[Tensor, "B N D"]) -> Float[Tensor, "B T D"]:
        """The frames of the longest clip."""
        return states[:, : _kept(self)]

    def write(self, states: Float[Tensor, "B N D"], frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B N D"]:
        """The frames, then those after the longest clip as they were."""
        return torch.cat([frames, states[:, frames.shape[1] :]], 1)


class PatchAxis(TimeAxis):
    """The frames of AST: at each step of its patches in time, the mean of the patches of all frequencies.

    Its tokens are two special ones, then `bands` rows of `total` patches, from low to high frequencies. Patches are
    `stride` hops of the spectrogram apart (published: 100 ms), and each reads 16 hops: a clip has as many frames as it
    has steps, rounded.
    """

    def __init__(self, frontend: KaldiFrontend, stride: int, bands: int, total: int) -> None:
        self.window, self.hop, self.stride = frontend.size, frontend.hop, stride
        self.samples = self.window + self.hop * (frontend.frames - 1)
        self.bands, self.total = bands, total

    def frames(self, lengths: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """The rounded number of steps in the spectrogram of a clip alone, at least one."""
        hops = 1 + (lengths - self.window).clamp(min=0) // self.hop
        return ((hops + self.stride // 2) // self.stride).clamp(min=1)

    def read(self, states: Float[Tensor, "B N D"]) -> Float[Tensor, "B T D"]:
        """The means over frequencies, at the steps of the longest clip."""
        patches: Tensor = states[:, -self.bands * self.total :].unflatten(1, (self.bands, self.total))
        return patches[:, :, : _kept(self)].mean(1)

    def write(self, states: Float[Tensor, "B N D"], frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B N D"]:
        """Patches moved so that these are their means; what they differ by over frequencies stays."""
        moved = frames - self.read(states)
        moved = nn.functional.pad(moved, (0, 0, 0, self.total - moved.shape[1]))
        special = states.shape[1] - self.bands * self.total
        return states + nn.functional.pad(moved.repeat(1, self.bands, 1), (0, 0, special, 0))


def axis_of(model: nn.Module, frontend: nn.Module | None) -> TimeAxis | None:
    """The frames at the layers of a model behind a spectrogram; None: its layers are frames, or have none."""
    config: Any = model.config
    if isinstance(frontend, WhisperFrontend):
        return WindowAxis(frontend.samples, frontend.hop)
    if isinstance(frontend, KaldiFrontend) and config.model_type == "audio-spectrogram-transformer":
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        total = (config.max_length - config.patch_size) // config.time_stride + 1
        return PatchAxis(frontend, config.time_stride, bands, total)
    return None


def _kept(axis: WindowAxis | PatchAxis) -> int:
    samples = _SAMPLES.get()
    return axis.total if samples is None else min(axis.total, int(axis.frames(torch.tensor([samples]))))
