"""Relational distillation: differences of distances and angles between rows (Park et al., CVPR 2019).

Both losses compare rows with each other: they are scalars of a whole batch and need the rows of all ranks at once.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NUMBERS_AT_ONCE = 2**22
"""Most numbers of one block of vertices for the angles: limits memory without changing the result."""
TINY = 1e-24


def rkd_distance(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """Smooth L1 between the distances of all pairs, each side in units of its mean positive distance; no unit.

    arXiv 1904.05068, equations 4 and 5; squared distances are clamped to 1e-12 or more, as in the released code.
    Nothing is detached here; detach the teacher's features.
    """
    if len(student) < 2:
        return student.sum() * 0.0
    return functional.smooth_l1_loss(_distances(student), _distances(teacher))


def rkd_angle(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"], *, numbers_at_once: int = NUMBERS_AT_ONCE
) -> Float[Tensor, ""]:
    """Smooth L1 between the cosines of the angles of all B³ triplets of rows; no unit.

    arXiv 1904.05068, equations 6 and 7. Vertices are processed in blocks and recomputed for the gradient: neither
    all B x B x D differences nor all B x B x B cosines are stored; the result is the same.
    """
    rows, width = len(student), max(student.shape[1], teacher.shape[1])
    if rows < 2:
        return student.sum() * 0.0
    size = max(1, numbers_at_once // (rows * (width + rows)))
    blocks = torch.arange(rows, device=student.device).split(size)
    if len(blocks) == 1:
        return _angles_apart(student, teacher, blocks[0]) / rows**3
    parts: list[Tensor] = [checkpoint(_angles_apart, student, teacher, at, use_reentrant=False) for at in blocks]
    return torch.stack(parts).sum() / rows**3


def _distances(features: Tensor) -> Tensor:
    rows = len(features)
    # Centring leaves distances unchanged and reduces the rounding error of the subtraction below.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    centred = features - features.mean(0)
    squares = centred.square().sum(1)
    # Without autocast: with a product of 16 bits, small distances would be rounding errors of squares.
    with torch.autocast(features.device.type, enabled=False):
        between = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * (centred @ centred.T)).clamp(min=1e-12)
    distances = between.sqrt() * (1 - torch.eye(rows, dtype=features.dtype, device=features.device))
    # The clamp makes the distance of every pair of different rows positive.
    return distances / (distances.sum() / (rows * (rows - 1)))


def _angles_apart(student: Tensor, teacher: Tensor, vertices: Tensor) -> Tensor:
    """The sum of smooth L1 over all pairs of rows, for the angles at these vertices."""
    mine, theirs = _cosines(student, vertices), _cosines(teacher, vertices)
    return functional.smooth_l1_loss(mine, theirs, reduction="sum")


def _cosines(features: Tensor, vertices: Tensor) -> Tensor:
    """Cosines (V, B, B) between the directions from each vertex to all rows; 0 for rows at the vertex."""
    apart = features.unsqueeze(0) - features[vertices].unsqueeze(1)
    squares = apart.square().sum(2, keepdim=True)
    # Coinciding rows have no direction and no gradient; division by a tiny length would make it explode.
    directions = apart * torch.where(squares > TINY, squares.clamp(min=TINY).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)
