"""Immediate gradients: a step with many independent terms holds one graph at a time.

The graph of a term with separate parameters (one mask, for example) is needed only until its gradient is computed. The
gradient is computed right after the term, so that its graph is freed before the next term: peak memory is that of the
largest term instead of the sum. The step's interface, weighting and DDP's hooks do not change. No pass runs twice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def immediately(
    compute: Callable[[], Sequence[Tensor]], owned: Sequence[Sequence[nn.Parameter]], total_rows: int
) -> list[Tensor]:
    """Values per row (one tensor of rows for each entry of `owned`), with immediately computed gradients.

    Values k must depend only on the parameters `owned[k]`, and on nothing else that needs a gradient. Values must be
    reduced as a term is: their sum divided by `total_rows`, times any factor, since only the gradient of the whole sum
    is stored. Without gradient mode this only calls `compute`.
    """
    owned = [[weight for weight in weights if weight.requires_grad] for weights in owned]
    if not torch.is_grad_enabled() or not any(owned):
        return list(compute())
    flat = [weight for weights in owned for weight in weights]
    counts = [len(weights) for weights in owned]
    apply: Callable[..., tuple[Tensor, ...]] = _Immediate.apply
    return list(apply(compute, counts, total_rows, *flat))


class _Immediate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Sequence[Tensor]], counts: list[int], total_rows: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            values = list(compute())
            # The gradient of a term's reduction for every row, bit-identical, so that nothing is rounded twice.
            sent = [torch.ones((), dtype=value.dtype, device=value.device) / total_rows for value in values]
            ctx.boost = _boost(sent[0].device.type, total_rows)
            weights = [(factor * ctx.boost).expand_as(value) for factor, value in zip(sent, values, strict=True)]
            with torch.autocast(sent[0].device.type, enabled=False):
                gradients = torch.autograd.grad(values, parameters, weights, allow_unused=True)
        ctx.counts, ctx.used = counts, [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*sent, *(gradient for gradient in gradients if gradient is not None))
        return tuple(value.detach() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        sent = [next(saved) for _ in upstream]
        # One number for all rows: exactly 1 for a term of weight 1.
        scales = [
            upstream[k].flatten()[0] / sent[k] / ctx.boost if upstream[k].numel() else sent[k].new_zeros(())
            for k in range(len(upstream))
        ]
        # If the check needs no synchronisation, skip scaling by 1: masks have gradients of half a gigabyte.
        plain = [scale.device.type == "cpu" and bool(scale == 1) for scale in scales]
        owners = [k for k, count in enumerate(ctx.counts) for _ in range(count)]
        gradients: list[Tensor | None] = []
        for k, used in zip(owners, ctx.used, strict=True):
            gradient = next(saved) if used else None
            gradients.append(gradient if gradient is None or plain[k] else gradient * scales[k])
        return (None, None, None, *gradients)


def immediately_in_blocks(
    compute: Callable[..., Sequence[Tensor]],
    rows: Float[Tensor, "G B *any"],
    shared: Sequence[Tensor],
    blocks: Sequence[slice],
    total_rows: int,
) -> list[Tensor]:
    """`compute(block, rows[:, block], *shared)`, G tensors of values per row, with immediate gradients.

    For use inside `immediately`: the tensors saved for the backward pass of a block of rows are freed before the next
    block. Values k must depend only on `rows[k]` and `shared`, and on nothing else that needs a gradient. A shared
    tensor with a first dimension of G has one entry per values k; others belong to all values, which then need equal
    weights. The memory of `rows` is overwritten by their gradient.
    """
    if not torch.is_grad_enabled():
        parts = [compute(block, rows[:, block], *shared) for block in blocks]
        return [torch.cat(values) for values in zip(*parts, strict=True)]
    apply: Callable[..., tuple[Tensor, ...]] = _InBlocks.apply
    return list(apply(compute, blocks, total_rows, rows, *shared))


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[..., Sequence[Tensor]],
        blocks: Sequence[slice],
        total_rows: int,
        rows: Tensor,
        *shared: Tensor,
    ) -> tuple[Tensor, ...]:
        kind = rows.device.type
        to_rows, to_shared = rows.detach(), [torch.zeros_like(tensor) for tensor in shared]
        kept: list[Sequence[Tensor]] = []
        for block in blocks:
            leaves = [tensor.detach().requires_grad_() for tensor in (rows[:, block], *shared)]
            with torch.enable_grad():
                values = compute(block, *leaves)
            ctx.sent = 1 / total_rows * _boost(kind, total_rows)
            with torch.autocast(kind, enabled=False):
                upstream = [torch.full_like(value, ctx.sent) for value in values]
                gradients = torch.autograd.grad(values, leaves, upstream)
            to_rows[:, block] = gradients[0]
            for whole, part in zip(to_shared, gradients[1:], strict=True):
                whole += part
            kept.append([value.detach() for value in values])
        ctx.save_for_backward(to_rows, *to_shared)
        return tuple(torch.cat(values) for values in zip(*kept, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scales = torch.stack([gradient.flatten()[0] for gradient in upstream]) / ctx.sent
        if scales.device.type == "cpu" and bool((scales == 1).all()):
            return (None, None, None, *ctx.saved_tensors)
        to_each = [_times(gradient, scales) for gradient in ctx.saved_tensors]
        return (None, None, None, *to_each)


def _times(gradient: Tensor, scales: Tensor) -> Tensor:
    each = scales if len(gradient) == len(scales) else scales[:1]
    return gradient * each.to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))


def _boost(kind: str, total_rows: int) -> float:
    """Factor of the gradients of float16 passes, which prevents underflow before the loss scale is applied."""
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return 2.0 ** round(math.log2(total_rows)) if half else 1.0
