"""Attention transfer: distance between spatial attention maps (Zagoruyko and Komodakis, ICLR 2017)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.losses.spatial import as_map, same_space


def attention_transfer(
    student: Float[Tensor, "B *mine"], teacher: Float[Tensor, "B *theirs"], power: float = 2.0
) -> Float[Tensor, " B"]:
    """Mean over positions of (a_s - a_t)², a = L2-normalised mean over channels of |f|^power; no unit.

    arXiv 1612.03928, equation 2. Channels may differ, and the larger map is pooled to the smaller. Nothing is
    detached here; detach the teacher's features.
    """
    mine, theirs = same_space(as_map(student), as_map(teacher))
    return (_attention(mine, power) - _attention(theirs, power)).square().mean(1)


def _attention(feature: Tensor, power: float) -> Tensor:
    return functional.normalize(feature.abs().pow(power).mean(1).flatten(1), dim=1)
