"""Mean squared error of each row, for hints (Romero et al., FitNets, ICLR 2015) and for predictions."""

from jaxtyping import Float
from torch import Tensor


def squared_error(one: Float[Tensor, "B *shape"], other: Float[Tensor, "B *shape"]) -> Float[Tensor, " B"]:
    """The mean over all values of a row's feature or logits, in their squared unit.

    arXiv 1412.6550, equation 3 (there half the sum). Nothing is detached here; detach the teacher's side.
    """
    return (one - other).square().flatten(1).mean(1)
