"""Hierarchical context loss: features compared at several spatial sizes (Chen et al., ReviewKD, CVPR 2021)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEVELS = (4, 2, 1)


def hierarchical_context(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Weighted mean of squared errors at full size (weight 1) and pooled to 4, 2 and 1 positions a side (½, ¼, ⅛).

    arXiv 2104.09044, section 3.3. Sizes that are not below the feature's are skipped, and the weight is halved
    only for used sizes. Nothing is detached here; detach the teacher's feature.
    """
    size = max(student.shape[2:])
    total, weight, weights = _error(student, teacher), 1.0, 1.0
    for level in LEVELS:
        if level < size:
            weight /= 2
            pooled = (min(level, student.shape[2]), min(level, student.shape[3]))
            mine, theirs = (functional.adaptive_avg_pool2d(value, pooled) for value in (student, teacher))
            total = total + weight * _error(mine, theirs)
            weights += weight
    return total / weights


def _error(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().flatten(1).mean(1)
