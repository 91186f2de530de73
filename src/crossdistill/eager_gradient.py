"""Gradients that are taken at once, so that a step of many independent terms holds one graph at a time.

A term that reaches parameters of its own (one mask, say) needs its graph only until its gradient is known. Taken right
after the term is computed, the graph is gone before the next term's begins: memory is that of the largest term instead
of the sum, and the step's interface, weighting, and DDP's hooks stay what they are. No pass is run twice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def eagerly(
    compute: Callable[[], Sequence[Tensor]], owned: Sequence[Sequence[nn.Parameter]], total_rows: int
) -> list[Tensor]:
    """Values row by row (one tensor of rows for each entry of `owned`), with their gradients taken at once.

    `owned[k]` are the only parameters that values k depend on, and they depend on nothing else that needs a gradient.
    Values have to be reduced as a term's are: their sum over `total_rows`, times anything, since the gradient is kept
    for the whole sum. Without gradient mode this is `compute` alone.
    """
    owned = [[own for own in owns if own.requires_grad] for owns in owned]
    if not torch.is_grad_enabled() or not any(owned):
        return list(compute())
    flat = [own for owns in owned for own in owns]
    counts = [len(owns) for owns in owned]
    apply: Callable[..., tuple[Tensor, ...]] = _Eager.apply
    return list(apply(compute, counts, total_rows, *flat))


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Sequence[Tensor]], counts: list[int], total_rows: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            values = list(compute())
            # What a term's reduction sends back to every row; to the last bit, so that nothing is rounded twice.
            sent = [torch.ones((), dtype=value.dtype, device=value.device) / total_rows for value in values]
            ctx.boost = _boost(sent[0].device.type, total_rows)
            weights = [(one * ctx.boost).expand_as(value) for one, value in zip(sent, values, strict=True)]
            with torch.autocast(sent[0].device.type, enabled=False):
                found = torch.autograd.grad(values, parameters, weights, allow_unused=True)
        ctx.counts, ctx.given = counts, [gradient is not None for gradient in found]
        ctx.save_for_backward(*sent, *(gradient for gradient in found if gradient is not None))
        return tuple(value.detach() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        sent = [next(saved) for _ in upstream]
        # One number for all rows: exactly 1 where the term has weight 1.
        scales = [
            upstream[k].flatten()[0] / sent[k] / ctx.boost if upstream[k].numel() else sent[k].new_zeros(())
            for k in range(len(upstream))
        ]
        # Where a look is free, what needs no scaling is handed on as it is: masks have gradients of half a gigabyte.
        plain = [scale.device.type == "cpu" and bool(scale == 1) for scale in scales]
        owners = [k for k, count in enumerate(ctx.counts) for _ in range(count)]
        gradients: list[Tensor | None] = []
        for k, given in zip(owners, ctx.given, strict=True):
            gradient = next(saved) if given else None
            gradients.append(gradient if gradient is None or plain[k] else gradient * scales[k])
        return (None, None, None, *gradients)


def _boost(kind: str, total_rows: int) -> float:
    """What gradients of float16 passes are multiplied by, so that they do not vanish: the loss scale comes later."""
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return 2.0 ** round(math.log2(total_rows)) if half else 1.0
