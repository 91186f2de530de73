"""Distances between a translated feature and a teacher's, position by position (RADIO, Theia, PHI-S)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Distance = Literal["cosine", "smooth-l1", "mse", "cosine+smooth-l1"]


def feature_distance(
    student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P D"], kind: Distance, cosine_share: float = 0.9
) -> Float[Tensor, " B"]:
    """The mean over a row's positions of the distance of two vectors.

    "cosine" is 1 - cos (dimensionless). "smooth-l1" (threshold 1) and "mse" are means over the D values, in the unit of
    the features and in its square. "cosine+smooth-l1" is `cosine_share` of the first and the rest of the second: with
    0.9, equations 3 to 5 of RADIO (arXiv 2312.06709), which Theia uses too (2407.20179). Nothing is detached here.
    """
    if kind == "mse":
        return (student - teacher).square().flatten(1).mean(1)
    angle = 1 - functional.cosine_similarity(student, teacher, dim=2).mean(1)
    if kind == "cosine":
        return angle
    smooth = functional.smooth_l1_loss(student, teacher, reduction="none").flatten(1).mean(1)
    return smooth if kind == "smooth-l1" else cosine_share * angle + (1 - cosine_share) * smooth
