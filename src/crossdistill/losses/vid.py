"""Variational information distillation: Gaussian likelihood of the teacher's feature (Ahn et al., CVPR 2019)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEAST_VARIANCE = 1e-5


def gaussian_nll(
    mean: Float[Tensor, "B C *space"], feature: Float[Tensor, "B C *space"], log_scale: Float[Tensor, " C"]
) -> Float[Tensor, " B"]:
    """Mean over channels and positions of ½ · ((mean - feature)² / v + log v), v = softplus(log_scale) + 1e-5.

    arXiv 1904.05835, equations 4 and 6; in nats, up to a constant. `log_scale` is one trained number per teacher
    channel.
    """
    variance = functional.softplus(log_scale) + LEAST_VARIANCE
    variance = variance.view(-1, *[1] * (feature.ndim - 2))
    return (0.5 * ((mean - feature).square() / variance + torch.log(variance))).flatten(1).mean(1)


def log_scale_of(variance: float) -> float:
    """The `log_scale` that gives this variance."""
    return math.log(math.expm1(variance - LEAST_VARIANCE))
