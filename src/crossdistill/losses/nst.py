"""Neuron selectivity transfer: the distribution of channels' activation patterns (Huang and Wang, 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.losses.spatial import as_map, same_space


def selectivity_transfer(student: Float[Tensor, "B *mine"], teacher: Float[Tensor, "B *theirs"]) -> Float[Tensor, " B"]:
    """Squared maximum mean discrepancy between the channels of two maps, kernel (x · y)²; no unit.

    arXiv 1707.01219, equation 7: mean K(t, t) + mean K(s, s) - 2 · mean K(s, t) over pairs of channels, each channel
    L2-normalised over positions. Channels may differ, and the larger map is pooled to the smaller.
    """
    maps = same_space(as_map(student), as_map(teacher))
    mine, theirs = (functional.normalize(value.flatten(2), dim=2) for value in maps)
    return _kernel(theirs, theirs) + _kernel(mine, mine) - 2 * _kernel(mine, theirs)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return torch.bmm(first, second.transpose(1, 2)).square().mean(dim=(1, 2))
