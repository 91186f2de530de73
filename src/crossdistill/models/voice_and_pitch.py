"""A student of voices and pitches: an embedding of a recording, and 360 pitches for each 10 ms (as CREPE's)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.hidden_states import valid_frames

RATE, HOP, WINDOW = 16_000, 160, 1024
"""Samples a second, between the middles of frames, and of a frame."""
PITCHES, OCTAVE, LOWEST = 360, 60, 31.70
"""Pitches 20 cents apart, of an octave, and the first one in hertz."""
HARMONICS = (1 / 3, 1 / 2, 1, 2, 3, 4, 5, 6, 7, 8)
FLOOR = 0.01
"""Added to the spectrum, whose mean over its bins is 1, before the logarithm."""


class VoiceAndPitch(nn.Module):
    """Waves (B, samples) at 16 kHz -> embedding (B, 256) of length 1; tap `pitch`: logits (B, T, 360) for each 10 ms.

    A pitch is judged by the spectrum at its harmonics and by the autocorrelation at its period, by the same weights for
    all pitches. What is found there and the spectral envelope go through convolutions over time to the embedding.
    """

    window: Tensor
    filters: Tensor
    lags: Tensor

    def __init__(self, channels: int = 16, width: int = 192) -> None:
        super().__init__()
        cents = torch.arange(8 * OCTAVE) / OCTAVE
        hertz, bins = LOWEST * 2**cents, torch.arange(WINDOW // 2 + 1) * RATE / WINDOW
        spread = (hertz * (2 ** (1 / OCTAVE) - 1)).clamp(min=RATE / WINDOW)
        filters = (1 - (bins - hertz[:, None]).abs() / spread[:, None]).clamp(min=0)
        lags = torch.cos(2 * torch.pi * bins / hertz[:PITCHES, None])
        for name, value in {
            "window": torch.hann_window(WINDOW),
            "filters": (filters / filters.sum(1, keepdim=True).clamp(min=1e-6)).T.contiguous(),
            "lags": lags.T.contiguous(),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.shifts = [round(OCTAVE * math.log2(harmonic)) for harmonic in HARMONICS]
        self.harmonics = nn.Sequential(
            nn.Conv1d(len(HARMONICS) + 3, channels, 4, 2, 1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, 1, 1),
            nn.ReLU(),
        )
        self.salience = nn.Conv1d(channels, 2, 1)
        self.competition = nn.Parameter(torch.tensor(0.5))
        self.enter = nn.Sequential(nn.Linear(80 + 15 * channels + 1, width), nn.LayerNorm(width), nn.GELU())
        self.times = nn.ModuleList(nn.Conv1d(width, width, 3, padding=step, dilation=step) for step in (1, 2, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.times)
        self.dropout = nn.Dropout(0.1)
        self.voiced, self.attention = nn.Linear(width, 1), nn.Linear(width, 1)
        self.voice = nn.Linear(2 * width, 256)
        self.pitch = nn.Identity()

    def frames(self, lengths: Tensor) -> Tensor:
        """The valid frames of waves of these lengths."""
        return 1 + lengths // HOP

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The embedding of the whole recording."""
        if lengths is None:
            lengths = torch.full((len(values),), values.shape[1], device=values.device)
        values = values * valid_frames(lengths, values.shape[1])
        spectrum = (
            torch.stft(values, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True).abs().mT
        )
        there = valid_frames(self.frames(lengths), spectrum.shape[1])[..., None]
        level = (spectrum.square().mean(-1, keepdim=True) + 1e-6).log()
        level = (level - (level * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)) / 4
        spectrum = spectrum / (spectrum.mean(-1, keepdim=True) + 1e-4)
        bands = (spectrum @ self.filters + FLOOR).log()
        found = self.harmonics(self._candidates(spectrum, bands))
        batch, total = bands.shape[:2]
        salience = self.salience(found).mT.reshape(batch, total, PITCHES)
        shape = torch.cat([bands.unflatten(-1, (80, 6)).mean(-1), level], -1)
        pooled = found.unflatten(-1, (15, 12)).mean(-1).reshape(batch, total, -1)
        state = self.enter(torch.cat([shape, pooled], -1))
        for layer, norm in zip(self.times, self.norms, strict=True):
            state = state + self.dropout(functional.gelu(layer(norm(state * there).mT * there.mT).mT))
        self.pitch(salience - self.competition * salience.logsumexp(-1, keepdim=True) + self.voiced(state) - 2)
        weight = self.attention(state).masked_fill(~there, -torch.inf).softmax(1)
        mean = (weight * state).sum(1)
        spread = ((weight * state.square()).sum(1) - mean.square()).clamp(min=1e-6).sqrt()
        return {"embedding": functional.normalize(self.voice(torch.cat([mean, spread], -1)), dim=1)}

    def _candidates(self, spectrum: Tensor, bands: Tensor) -> Tensor:
        """For each frame (B · T, C, 360): the spectrum at each pitch's harmonics, and the autocorrelation around it."""
        padded = functional.pad(bands, (120, 180), value=math.log(FLOOR))
        parts = [padded[..., 120 + shift : 120 + shift + PITCHES] for shift in self.shifts]
        root = spectrum.sqrt()
        periodic = functional.pad(4 * (root @ self.lags) / root.sum(-1, keepdim=True).clamp(min=1e-4), (60, 60))
        parts += [periodic[..., start : start + PITCHES] for start in (0, 60, 120)]
        return torch.stack(parts, 2).flatten(0, 1)
