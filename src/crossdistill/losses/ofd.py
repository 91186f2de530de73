"""Overhaul of feature distillation: partial distance above a margin, before the activation (Heo et al., ICCV 2019)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def partial_distance(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], margin: Float[Tensor, " C"]
) -> Float[Tensor, " B"]:
    """Squared distance, added up over channels and space, to the teacher's feature kept above the margin; no unit.

    arXiv 1904.01866, equations 2 and 3: where the teacher is below zero, the student is only pulled down, never up.

    Args:
        student: already brought to the teacher's channels.
        teacher: before its activation; detach it where it teaches.
        margin: one for each channel, below zero.
    """
    least = margin.view(1, -1, 1, 1)
    wanted = torch.maximum(teacher, least)
    pulled = (teacher > 0) | (student > wanted)
    return torch.where(pulled, (student - wanted).square(), 0.0).flatten(1).sum(1)


def normal_margin(mean: Float[Tensor, " C"], deviation: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Expected value below zero of normal responses, in their unit: what batch norm's shift and scale say of them.

    m - s · exp(-(m / s)² / 2) / (√(2π) · Φ(-m / s)), or -3 s where hardly any response (0.1 %) is below zero.
    """
    deviation = deviation.abs()
    ratio = mean / deviation
    below = torch.special.ndtr(-ratio)
    expected = mean - deviation * torch.exp(-ratio.square() / 2) / (math.sqrt(2 * math.pi) * below)
    return torch.where(below > 0.001, expected, -3 * deviation)
