"""Gradients of large linear layers, stored as two factors.

A layer's gradient over B rows is a product of two matrices with B rows each. For a mask network's projector (105
million weights at AV-MNIST's sizes) and a batch of 64 rows, the factors need a tenth of the product's memory, and the
product would be written once and read twice. The optimizer multiplies the factors in parts of the weight
(`ChunkedAdam`). Operations that are not implemented for factors use the product.

Shapes: T tokens of width d, B rows, L numbers in; the weight is (T · d, L).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

LARGE_BYTES = 32 * 2**20
"""Least size of a weight, in bytes, that is processed in parts."""

_from_bytes: ContextVar[float] = ContextVar("factored_gradients", default=math.inf)
"""Least size of a weight, in bytes, whose gradient is kept as factors."""


@contextmanager
def factored_gradients(wanted: bool = True, *, large_bytes: int | None = None) -> Iterator[None]:
    """A context in which supporting layers keep gradients of weights of `large_bytes` or more as factors."""
    least = LARGE_BYTES if large_bytes is None else large_bytes
    token = _from_bytes.set(least if wanted else math.inf)
    try:
        yield
    finally:
        _from_bytes.reset(token)


def worth_factoring(rows: int, weight: Float[Tensor, "T_d L"]) -> bool:
    """Whether to keep factors of this number of rows: the weight is large, and the factors are not larger."""
    return rows <= weight.shape[1] and weight.nbytes >= _from_bytes.get()


def product(left: Float[Tensor, "T B d"], right: Float[Tensor, "B L"], out: Tensor | None = None) -> Tensor:
    """The product of the factors, (T · d, L)."""
    many = right.expand(len(left), *right.shape)
    if out is not None:
        out = out.view(len(left), left.shape[2], right.shape[1])
    return torch.bmm(left.transpose(1, 2), many, out=out).flatten(0, 1)


class FactoredGradient(Tensor):
    """A gradient (T · d, L), stored as factors."""

    left: Float[Tensor, "T B d"]
    right: Float[Tensor, "B L"]

    def __new__(cls, left: Tensor, right: Tensor) -> "FactoredGradient":
        """A tensor with the product's shape but without storage for its values."""
        tokens, _, width = left.shape
        gradient: FactoredGradient = torch.Tensor._make_wrapper_subclass(
            cls, (tokens * width, right.shape[1]), dtype=left.dtype, device=left.device
        )
        gradient.left, gradient.right = left, right
        return gradient

    def __init__(self, left: Tensor, right: Tensor) -> None:
        pass

    @property
    def width(self) -> int:
        """Rows of the weight per token; parts consist of whole tokens."""
        return self.left.shape[2]

    def part(self, rows: slice, out: Tensor) -> Float[Tensor, "n L"]:
        """These rows of the gradient (whole tokens) as an ordinary tensor."""
        return product(self.left[rows.start // self.width : rows.stop // self.width], self.right, out)

    def multiplied(self) -> Float[Tensor, "T_d L"]:
        """The gradient as an ordinary tensor."""
        return product(self.left, self.right)

    # PyTorch's annotation lacks the class and the function.
    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Scaling, detaching and the norm use the factors; any other operation uses their product."""
        on_factors = _ON_FACTORS.get(func.overloadpacket)
        if on_factors is not None and isinstance(args[0], cls) and not any(isinstance(arg, cls) for arg in args[1:]):
            return on_factors(*args, **(kwargs or {}))
        if func._schema.is_mutable and any(isinstance(leaf, cls) for leaf in tree_leaves(args[0])):
            raise TypeError(f"{func} would change a gradient that is held as factors")
        plain = tree_map(lambda leaf: leaf.multiplied() if isinstance(leaf, cls) else leaf, (args, dict(kwargs or {})))
        return func(*plain[0], **plain[1])


def _scaled(gradient: FactoredGradient, factor: Tensor | float) -> FactoredGradient:
    return FactoredGradient(gradient.left * factor, gradient.right)


def _scale(gradient: FactoredGradient, factor: Tensor | float) -> FactoredGradient:
    gradient.left.mul_(factor)
    return gradient


def _same(gradient: FactoredGradient) -> FactoredGradient:
    return FactoredGradient(gradient.left, gradient.right)


def _norm(gradient: FactoredGradient, order: float = 2, *arguments: Any, **options: Any) -> Tensor:
    """The Euclidean norm from the factors' inner products; other norms and dimensions use the product."""
    if order != 2 or arguments or options:
        whole: Tensor = torch.linalg.vector_norm(gradient.multiplied(), order, *arguments, **options)
        return whole
    left, right = gradient.left, gradient.right
    inner = torch.bmm(left, left.transpose(1, 2)).sum(0) * (right @ right.T)
    return inner.sum(dtype=torch.float64).clamp(min=0).sqrt().to(left.dtype)


_ON_FACTORS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mul: _scaled,
    torch.ops.aten.mul_: _scale,
    torch.ops.aten.detach: _same,
    torch.ops.aten.alias: _same,
    torch.ops.aten.linalg_vector_norm: _norm,
}
