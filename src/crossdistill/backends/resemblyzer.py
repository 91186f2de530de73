"""The speaker encoder of the package Resemblyzer (`resemblyzer:`): an embedding of length 1 for a recording."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.installed import RATE, check_options, installed_file, loaded, silent_padding
from crossdistill.backends.pretrained import Body, ExactBuffers, Kind, Loaded
from crossdistill.data.audio.sound import MelSettings, mel_filters
from crossdistill.data.dataset import Licence
from crossdistill.models.checkpoint import fill, read_checkpoint

INSTALL = "pip install --no-deps Resemblyzer==0.1.4"
LICENCE = Licence("Resemblyzer", "Apache-2.0", "https://github.com/resemble-ai/Resemblyzer", True)
MEL = MelSettings(RATE, n_fft=400, hop=160, bands=40)
WINDOW = 160
"""Frames of a window that the network reads at once: 1.6 s."""
STEP = 77
"""Frames between beginnings of windows: 1.3 windows a second."""
COVERED = 0.75
"""Fraction of a further window that a recording must fill."""
LOUDNESS = -30.0
"""Decibels below full scale to which a quieter recording is raised."""
WIDTH = 256


def load(source: str, options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> Loaded:
    """The encoder of the installed package, or with a `source` that of a file of weights of this architecture.

    Option: `seconds` is the length that is read, from the beginning (by default all of a recording).

    Raises:
        MissingExtraError: the package is not installed.
        SettingError: an option is unknown.
        DataError, ShapeError: the file is missing or damaged, or has other weights.
    """
    who = f"resemblyzer:{source}"
    check_options(options, ("seconds",), who)
    path = Path(source).expanduser() if source else installed_file("resemblyzer", "pretrained.pt", who, INSTALL)
    state = read_checkpoint(path, who, "model_state")
    body = SpeakerEncoder()
    # The other two values scale similarities while it is trained.
    fill(body, {name: value for name, value in state.items() if not name.startswith("similarity_")}, path, who)
    return loaded(body, path, options, dtype, None if source else LICENCE)


def modality_of(source: str, options: Mapping[str, Any]) -> Kind:
    """The kind of input: sounds."""
    return "audio"


def rebuilt(description: Mapping[str, Any]) -> "SpeakerEncoder":
    """The body of a saved student, with random weights."""
    return SpeakerEncoder()


class SpeakerEncoder(ExactBuffers, Body):
    """Three LSTM layers over windows of a mel spectrogram, trained to tell speakers apart (Wan et al. 2018, GE2E).

    The spectrogram is the power in 40 bands, without a logarithm, so that loudness counts: a quiet recording is raised
    first, as the package does. The package also cuts out silence by a voice detector, which is not done here.
    """

    input_dtype = torch.float32
    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.lstm = nn.LSTM(MEL.bands, WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.hann_window(MEL.n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(MEL).clone(), persistent=False)

    def description(self) -> dict[str, Any]:
        """See `Body`."""
        return {"network": "speaker-encoder"}

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The embedding (B, 256) of length 1 of waves (B, samples): the mean of its windows' embeddings."""
        waves, lengths = silent_padding(values, lengths)
        starts = [window_starts(samples) for samples in lengths.tolist()]
        rows = torch.tensor([row for row, some in enumerate(starts) for _ in some], device=waves.device)
        first = torch.tensor([start for some in starts for start in some], device=waves.device)
        bank = self.spectrogram(self._raised(waves, lengths), max(some[-1] for some in starts) + WINDOW)
        windows = bank[rows[:, None], first[:, None] + torch.arange(WINDOW, device=waves.device)]
        _, (hidden, _) = self.lstm(windows.to(self.linear.weight.dtype))
        parts = nn.functional.normalize(self.linear(hidden[-1]).relu().float(), dim=1)
        summed = torch.zeros(len(waves), WIDTH, device=waves.device).index_add(0, rows, parts)
        return {"embedding": nn.functional.normalize(summed, dim=1)}

    def spectrogram(self, waves: Tensor, frames: int) -> Tensor:
        """Power in mel bands (B, at least `frames`, 40) of waves (B, samples), with silence behind them."""
        short = max(0, frames * MEL.hop - waves.shape[1])
        spectrum = torch.stft(
            nn.functional.pad(waves, (0, short)),
            MEL.n_fft,
            MEL.hop,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )
        return (self.filters @ spectrum.abs().square()).mT

    def _raised(self, waves: Tensor, lengths: Tensor) -> Tensor:
        power = waves.square().sum(1) / lengths.clamp(min=1)
        gain = 10 ** (LOUDNESS / 20) / power.sqrt().clamp(min=1e-10)
        # Silence stays silence: the package divides by zero there.
        return waves * torch.where(power > 0, gain.clamp(min=1.0), 1.0)[:, None]


def window_starts(samples: int) -> list[int]:
    """First frames of the windows of a recording of so many samples; at least one."""
    frames = math.ceil((samples + 1) / MEL.hop)
    starts = list(range(0, max(1, frames - WINDOW + STEP + 1), STEP))
    covered = (samples - starts[-1] * MEL.hop) / (WINDOW * MEL.hop)
    return starts[:-1] if covered < COVERED and len(starts) > 1 else starts
