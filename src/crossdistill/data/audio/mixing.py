"""Mixes speech with noise at a given signal-to-noise ratio."""

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
    """Each clip at a random position in its noise; a clip that is longer than the window is cut at both ends.

    `snr_db` is the ratio of the clip's power over its length to the noise's power over the window, in decibels.
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
