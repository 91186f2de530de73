"""Self-supervised distillation by SVD: the change of a map's main directions between stages (Lee et al., ECCV 2018)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.losses.spatial import as_map, same_space

GAP = 1e-12
"""Squared relative distance of eigenvalues below which the gradient is damped: it is infinite for equal ones."""


def singular_flow(
    student: Sequence[Float[Tensor, "B ..."]], teacher: Sequence[Float[Tensor, "B ..."]], k: int = 1
) -> Float[Tensor, " B"]:
    """Squared difference of the two networks' flows between consecutive stages, summed over stages; no unit.

    Lee, Kim and Song, ECCV 2018. Each map is a matrix (C · H, W), whose first right singular vectors (k of the teacher,
    k + 3 of the student) are kept; each of the teacher's is matched with the student's of largest absolute cosine,
    with its sign flipped to agree; both are weighted by the teacher's L2-normalised singular values. A flow is
    exp(-(v_i[p] - v_(i-1)[q])² / 8) for all positions p, q of consecutive stages and each of the k vectors. Maps may
    differ in channels and size (the larger is pooled); the teacher's features have no gradient.
    """
    total: Tensor | None = None
    before: tuple[Tensor, Tensor] | None = None
    for mine, theirs in zip(student, teacher, strict=True):
        pair = _aligned_directions(*same_space(as_map(mine), as_map(theirs).detach()), k)
        if before is not None:
            flows = [_flow(now, then) for now, then in zip(pair, before, strict=True)]
            apart = (flows[0] - flows[1]).square().nan_to_num(0.0, 0.0, 0.0).sum(dim=(1, 2, 3))
            total = apart if total is None else total + apart
        before = pair
    return student[0].flatten(1).sum(1) * 0.0 if total is None else total


def _aligned_directions(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's directions (B, W, k), matched and weighted."""
    matrices = [value.flatten(1, 2) for value in (student, teacher)]
    theirs, values = _right_vectors(matrices[1], k)
    mine, _ = _right_vectors(matrices[0], theirs.shape[2] + 3)
    cosines = mine.transpose(1, 2) @ theirs
    best = cosines.abs().argmax(1, keepdim=True)
    signs = cosines.gather(1, best).sign()
    chosen = mine.gather(2, best.expand(-1, mine.shape[1], -1)) * signs
    weights = functional.normalize(values, dim=1).unsqueeze(1)
    return chosen * weights, theirs * weights


def _flow(now: Tensor, before: Tensor) -> Tensor:
    return torch.exp(-(now.unsqueeze(2) - before.unsqueeze(1)).square() / 8)


def _right_vectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (B, W, count) and singular values; fewer if there are not enough."""
    apply: Callable[[Tensor, int], tuple[Tensor, Tensor]] = _RightVectors.apply
    return apply(matrix, min(count, *matrix.shape[1:]))


class _RightVectors(torch.autograd.Function):
    """Right singular vectors with a finite gradient.

    They are eigenvectors of G = XᵀX. PyTorch's own gradient divides by differences of singular values, and gives NaN
    for maps of zeros or of low rank; here the division is damped for (nearly) equal eigenvalues.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
        exact = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        # The R factor has the same right vectors, all W of them.
        triangle = torch.linalg.qr(exact, mode="r").R
        _, values, adjoint = torch.linalg.svd(triangle, full_matrices=True)
        vectors = adjoint.mH.contiguous()
        squares = functional.pad(values.square(), (0, vectors.shape[2] - values.shape[1]))
        ctx.save_for_backward(exact, vectors, squares)
        ctx.count, ctx.dtype = count, matrix.dtype
        kept = values[:, :count].to(matrix.dtype)
        ctx.mark_non_differentiable(kept)
        return vectors[:, :, :count].to(matrix.dtype), kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        exact, vectors, squares = ctx.saved_tensors
        count = ctx.count
        gaps = squares[:, None, :count] - squares[:, :, None]
        scale = squares[:, :1, None].clamp(min=torch.finfo(squares.dtype).tiny)
        gaps = gaps / scale
        inverse = gaps / (gaps.square() + GAP) / scale
        inner = vectors.mT @ gradients[0].to(exact.dtype)
        by_gram = vectors @ (inverse * inner) @ vectors[:, :, :count].mT
        return (exact @ (by_gram + by_gram.mT)).to(ctx.dtype), None
