"""Overhaul of feature distillation: partial distance above a margin, before the activation (Heo et al., ICCV 2019)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def partial_distance(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], margin: Float[Tensor, " C"]
) -> Float[Tensor, " B"]:
    """Squared distance to the teacher's feature clipped at the margin, summed over channels and space; no unit.

    arXiv 1904.01866, equations 2 and 3: where the teacher is negative, only larger values of the student are penalised.

    Args:
        student: feature with the teacher's number of channels.
        teacher: feature before its activation; nothing is detached here.
        margin: one value per channel, below zero.
    """
    least = margin.view(1, -1, 1, 1)
    wanted = torch.maximum(teacher, least)
    pulled = (teacher > 0) | (student > wanted)
    return torch.where(pulled, (student - wanted).square(), 0.0).flatten(1).sum(1)


def normal_margin(mean: Float[Tensor, " C"], deviation: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Mean of normal responses given that they are below zero, in their unit; arguments: batch norm's shift and scale.

    m - s · exp(-(m / s)² / 2) / (√(2π) · Φ(-m / s)), or -3 s if hardly any response (0.1 %) is below zero.
    """
    deviation = deviation.abs()
    ratio = mean / deviation
    below = torch.special.ndtr(-ratio)
    expected = mean - deviation * torch.exp(-ratio.square() / 2) / (math.sqrt(2 * math.pi) * below)
    return torch.where(below > 0.001, expected, -3 * deviation)
