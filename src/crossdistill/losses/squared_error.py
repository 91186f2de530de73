"""Mean squared error of each row: hints (Romero et al., FitNets, ICLR 2015), and how far two predictions are apart."""

from jaxtyping import Float
from torch import Tensor


def squared_error(one: Float[Tensor, "B *shape"], other: Float[Tensor, "B *shape"]) -> Float[Tensor, " B"]:
    """The mean over all values of a row's feature or logits; in their unit squared.

    arXiv 1412.6550, equation 3 (there half the sum). Detach the side that teaches, nothing is detached here.
    """
    return (one - other).square().flatten(1).mean(1)
