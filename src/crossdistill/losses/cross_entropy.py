"""Cross-entropy of each row, with missing targets of rows and pixels."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ShapeError


def cross_entropy(
    logits: Float[Tensor, "B C *pixels"],
    targets: Int64[Tensor, "B *pixels"] | Float[Tensor, "B C *pixels"],
) -> Float[Tensor, " B"]:
    """Cross-entropy of each row, in nats; 0 for a row without a target.

    Targets are class indices (B,) or (B, H, W), with `MISSING_TARGET` for a missing one, or distributions (B, C) or
    (B, C, H, W), with NaN (as in `Batch`) or `MISSING_TARGET`. Pixels without a target are excluded from the row's
    mean; a row without any target is 0 with zero gradient.

    Raises:
        ShapeError: the targets fit the logits neither as class indices nor as distributions.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    if targets.shape == logits.shape[:1] + logits.shape[2:] and not targets.is_floating_point():
        known = targets != MISSING_TARGET
        surprise = functional.cross_entropy(logits.to(exact), targets, reduction="none", ignore_index=MISSING_TARGET)
    elif targets.shape == logits.shape and targets.is_floating_point():
        known = ~(targets.isnan() | (targets == MISSING_TARGET)).any(dim=1)
        probabilities = torch.where(known.unsqueeze(1), targets, 0.0)
        surprise = -(probabilities * torch.log_softmax(logits.to(exact), dim=1)).sum(dim=1)
    else:
        raise ShapeError(
            f"cross-entropy: logits are {tuple(logits.shape)}, targets {tuple(targets.shape)} of {targets.dtype}; "
            f"possible are class indices (int64) {tuple(logits.shape[:1] + logits.shape[2:])} or "
            f"distributions (float) {tuple(logits.shape)}"
        )
    if surprise.ndim == 1:
        return surprise
    return surprise.flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1).clamp(min=1)
