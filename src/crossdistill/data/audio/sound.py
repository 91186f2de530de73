"""Log-mel spectrograms and MFCC in PyTorch: batched, differentiable, equal to librosa's to float32 rounding."""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.errors import SettingError

POWER_FLOOR = 1e-10
"""Power below which decibels are not taken, as in librosa."""


@dataclass(frozen=True, slots=True)
class MelSettings:
    """Settings of a mel spectrogram.

    `sample_rate` and the limits are in hertz; `n_fft`, `hop` and `window` in samples (a Hann window, centred frames,
    zeros beyond the ends); `high_hz` None is half the sample rate. `scale` is Slaney's (linear below 1 kHz) or HTK's;
    filters have unit area. `top_db` is the dynamic range of an example in decibels (None: unlimited).
    """

    sample_rate: int
    n_fft: int
    hop: int
    bands: int
    window: int | None = None
    low_hz: float = 0.0
    high_hz: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    top_db: float | None = 80.0

    def frames(self, samples: int) -> int:
        """The number of frames of a spectrogram of `samples` samples."""
        return 1 + samples // self.hop


def hertz_to_mel(hertz: Float[Tensor, " F"], scale: str) -> Float[Tensor, " F"]:
    """Mel numbers; Slaney's scale is linear to 1 kHz (15 mel) and logarithmic above, 27 mel per factor of 6.4."""
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hertz / 700.0)
    logarithmic = 15.0 + torch.log(hertz.clamp(min=1e-3) / 1000.0) * (27.0 / math.log(6.4))
    return torch.where(hertz < 1000.0, hertz * 3.0 / 200.0, logarithmic)


def mel_to_hertz(mel: Float[Tensor, " F"], scale: str) -> Float[Tensor, " F"]:
    """The inverse of `hertz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return torch.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * torch.exp((mel - 15.0) * (math.log(6.4) / 27.0)))


@functools.lru_cache(maxsize=16)
def mel_filters(settings: MelSettings) -> Float[Tensor, "bands bins"]:
    """Triangular filters between equally spaced mel numbers, each of unit area (power per hertz).

    Raises:
        SettingError: a filter lies between two bins of the FFT and would be empty.
    """
    high = settings.high_hz or settings.sample_rate / 2
    ends = hertz_to_mel(torch.tensor([settings.low_hz, high], dtype=torch.float64), settings.scale)
    steps = torch.linspace(0, 1, settings.bands + 2, dtype=torch.float64)
    corners = mel_to_hertz(ends[0] + (ends[1] - ends[0]) * steps, settings.scale)
    bins = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0) * (2.0 / (right - left))
    empty = (filters.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise SettingError(
            f"mel filters: {len(empty)} of {settings.bands} bands lie between two bins of an FFT of {settings.n_fft} "
            "samples; use fewer bands or a larger n_fft"
        )
    return filters.float()


def log_mel(wave: Float[Tensor, "*batch samples"], settings: MelSettings) -> Float[Tensor, "*batch bands frames"]:
    """Mel power in decibels (reference power 1), not lower than `top_db` below each example's loudest point."""
    window_samples = settings.window or settings.n_fft
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(
        flat,
        settings.n_fft,
        settings.hop,
        window_samples,
        torch.hann_window(window_samples, dtype=wave.dtype, device=wave.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = mel_filters(settings).to(flat) @ spectrum.abs().square()
    decibels = 10.0 * torch.log10(power.clamp(min=POWER_FLOOR))
    if settings.top_db is not None:
        decibels = torch.maximum(decibels, decibels.amax((-2, -1), keepdim=True) - settings.top_db)
    return decibels.reshape(*wave.shape[:-1], *decibels.shape[-2:])


def mfcc(
    wave: Float[Tensor, "*batch samples"], settings: MelSettings, coefficients: int
) -> Float[Tensor, "*batch coefficients frames"]:
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of `log_mel` over its bands."""
    if not 1 <= coefficients <= settings.bands:
        raise SettingError(f"mfcc: wanted 1 to {settings.bands} coefficients, got {coefficients}")
    return cosine_basis(coefficients, settings.bands).to(wave) @ log_mel(wave, settings)


@functools.lru_cache(maxsize=16)
def cosine_basis(coefficients: int, bands: int) -> Float[Tensor, "coefficients bands"]:
    """The first rows of the orthonormal DCT-II."""
    order = torch.arange(coefficients, dtype=torch.float64)[:, None]
    position = torch.arange(bands, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi / bands * order * position) * math.sqrt(2.0 / bands)
    basis[0] /= math.sqrt(2.0)
    return basis.float()
