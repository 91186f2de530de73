"""Losses of many masks with little memory: masks run together, and gradients are computed early.

A mask network of a wide tap saves gigabytes for its backward pass. Each mask's gradient is therefore computed right
after its loss (`immediately`), in blocks of rows if rows are independent (`immediately_in_blocks`); small masks of
equal shape run in one pass (`mask_together`). The values are those of masks that run one after another.

Shapes: B rows, L units of a tap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.autograd.immediate import immediately, immediately_in_blocks
from crossdistill.nets.mask import apply_mask
from crossdistill.nets.mask_together import masks_of, opened_together, together

Loss = Callable[[Tensor, slice], Tensor]
"""A function of the masked values of a slice of rows that returns one loss per row."""


@dataclass(frozen=True, slots=True)
class MaskedTap:
    """A mask network, its input value (B, *shape), and the loss of the masked value.

    The loss must depend on no trained parameters except those of the mask.
    """

    mask: nn.Module
    value: Tensor
    loss: Loss
    independent_rows: bool
    """Whether the loss of some rows can be computed without the others."""


def masked_losses(taps: Sequence[MaskedTap], total_rows: int) -> list[Float[Tensor, " R"]]:
    """The loss of each tap's masked value, one number per row; to be reduced to their sum divided by `total_rows`.

    The graph of these losses contains only the parameters of the masks, with precomputed gradients.
    """
    losses: dict[int, Tensor] = {}
    for group in together([tap.mask for tap in taps], [tap.value for tap in taps]):
        members = [taps[number] for number in group]
        values = immediately(
            partial(_losses, members, total_rows), [list(tap.mask.parameters()) for tap in members], total_rows
        )
        losses |= dict(zip(group, values, strict=True))
    return [losses[number] for number in range(len(taps))]


def _losses(taps: Sequence[MaskedTap], total_rows: int) -> list[Tensor]:
    """The losses of masks that run in one pass."""
    networks, values = [tap.mask for tap in taps], [tap.value for tap in taps]
    if not torch.is_grad_enabled() or not all(tap.independent_rows for tap in taps):
        masks = masks_of(networks, values)
        return [tap.loss(apply_mask(tap.value, mask), slice(None)) for tap, mask in zip(taps, masks, strict=True)]
    opened = opened_together(networks, values)

    def of_block(block: slice, *tensors: Tensor) -> list[Tensor]:
        masks = torch.sigmoid(opened.logits(*tensors)).unbind()
        return [tap.loss(apply_mask(tap.value[block], mask), block) for tap, mask in zip(taps, masks, strict=True)]

    return immediately_in_blocks(of_block, opened.rows, opened.shared, list(opened.blocks()), total_rows)
