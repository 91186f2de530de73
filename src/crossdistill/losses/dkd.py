"""Decoupled distillation: target-class and non-target-class divergence (Zhao et al., CVPR 2022)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ShapeError
from crossdistill.losses.kl import log_probabilities


def target_class_kl(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], targets: Int64[Tensor, " B"], temperature: float
) -> Float[Tensor, " B"]:
    """TCKD: T² · KL between the pairs (p_y, 1 - p_y), in nats; 0 in a row without a target. arXiv 2203.08679, eq. 4.

    Args:
        student: logits of the prediction.
        teacher: logits; nothing is detached here.
        targets: class of each row, or `MISSING_TARGET`.
        temperature: dimensionless, above 0.

    Raises:
        ShapeError: fewer than two classes.
    """
    (mine, _), (theirs, _) = (_decoupled(logits, targets, temperature) for logits in (student, teacher))
    return temperature**2 * torch.where(targets != MISSING_TARGET, (theirs.exp() * (theirs - mine)).sum(1), 0.0)


def other_classes_kl(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], targets: Int64[Tensor, " B"], temperature: float
) -> Float[Tensor, " B"]:
    """NCKD: T² · KL between the softmaxes over all classes but the target, in nats; 0 in a row without a target.

    arXiv 2203.08679, equation 6; arguments and errors are those of `target_class_kl`. With two classes it is always 0.
    """
    (_, mine), (_, theirs) = (_decoupled(logits, targets, temperature) for logits in (student, teacher))
    # The target's entry may have any value, infinity included; it is replaced before use.
    others = torch.ones_like(mine, dtype=torch.bool).scatter(1, targets.clamp(min=0).unsqueeze(1), False)
    mine, theirs = torch.where(others, mine, 0.0), torch.where(others, theirs, 0.0)
    divergence = torch.where(others, theirs.exp() * (theirs - mine), 0.0).sum(1)
    return temperature**2 * torch.where(targets != MISSING_TARGET, divergence, 0.0)


def _decoupled(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log of (p_y, 1 - p_y), (B, 2), and of the softmax over the other classes, (B, C); exact near 0 and 1.

    In the second, the target's entry is undefined.
    """
    if logits.shape[1] < 2:
        raise ShapeError(f"decoupled distillation needs two classes at least; the logits are {tuple(logits.shape)}")
    logs = log_probabilities(logits, temperature)
    target = targets.clamp(min=0).unsqueeze(1)
    rest = logs.scatter(1, target, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logs.gather(1, target), rest], dim=1), logs - rest
