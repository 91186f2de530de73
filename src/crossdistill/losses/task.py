"""The loss of a task, by the kind of its targets: the one function that methods call for their labels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.batch import Task
from crossdistill.errors import ShapeError
from crossdistill.losses.cross_entropy import cross_entropy

EVERY_TASK: frozenset[Task] = frozenset({"classes", "multi-label", "regression", "soft", "none"})


def task_loss(
    task: Task, logits: Tensor, targets: Tensor, *, smooth: float | None = None, positive: Tensor | None = None
) -> Float[Tensor, " B"]:
    """The loss of each row; 0 for a row without a target. With missing columns (NaN): the mean over the known ones.

    | task | targets | loss |
    |---|---|---|
    | classes | class indices (B,) or (B, H, W) | cross-entropy, nats |
    | soft, none | distributions (B, C) | cross-entropy, nats |
    | multi-label | 0 or 1, (B, C) | binary cross-entropy of sigmoid(logits), nats, mean over the columns |
    | regression | standardised numbers (B, C) | squared error, or smooth-L1, mean over the columns |

    Args:
        task: the kind of the targets.
        logits: outputs of a network (B, C, ...).
        targets: what it should give, as in `Batch`.
        smooth: for a regression, the error at which smooth-L1 changes from squared to linear, in standard deviations
            (`torch.nn.SmoothL1Loss.beta`); None: the squared error.
        positive: for multi-label, the weight of each column's positive rows (C,).

    Raises:
        ShapeError: the targets do not fit the logits.
    """
    if task not in ("multi-label", "regression"):
        return cross_entropy(logits, targets)
    if targets.shape != logits.shape or not targets.is_floating_point():
        raise ShapeError(
            f"{task}: the outputs are {tuple(logits.shape)}, targets {tuple(targets.shape)} of {targets.dtype}; wanted "
            "one number for each output"
        )
    outputs = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = ~targets.isnan()
    wanted = torch.where(known, targets, 0.0).to(outputs.dtype)
    if task == "multi-label":
        errors = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none", pos_weight=positive)
    elif smooth is None:
        errors = (outputs - wanted).square()
    else:
        errors = functional.smooth_l1_loss(outputs, wanted, reduction="none", beta=smooth)
    return torch.where(known, errors, 0.0).sum(1) / known.sum(1).clamp(min=1)
