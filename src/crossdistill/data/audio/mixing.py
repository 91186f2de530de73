"""Speech somewhere in a window of noise, at a given ratio of their powers."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


def mix(
    clips: Sequence[NDArray[np.float32]],
    noise: Float[Tensor, "B samples"],
    snr_db: float,
    generators: Sequence[np.random.Generator],
) -> Float[Tensor, "B samples"]:
    """Each clip at a random place in its noise; a clip that is longer than the window loses both its ends.

    `snr_db` compares the power of the clip over its own length with that of the noise over the window, in decibels.
    """
    mixed = noise / noise.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
    samples = noise.shape[1]
    for row, (clip, rng) in enumerate(zip(clips, generators, strict=True)):
        spare = max(0, len(clip) - samples)
        wave = torch.from_numpy(clip[spare // 2 : spare // 2 + samples])
        start = int(rng.integers(samples - len(wave) + 1))
        level = max(float(wave.square().mean().sqrt()), 1e-8)
        mixed[row, start : start + len(wave)] += wave * (10 ** (snr_db / 20) / level)
    return mixed
