"""Projection of pictures on their leading principal components, as in AV-MNIST."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.errors import SettingError

BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Principal:
    """The leading principal components of flattened pictures; `energy` is the fraction of the variance they explain."""

    mean: Float[Tensor, " D"]
    basis: Float[Tensor, "K D"]
    energy: float


def fit_principal(
    pictures: Float[Tensor, "N D"], *, energy: float | None = None, components: int | None = None
) -> Principal:
    """The smallest number of leading components that explain a fraction `energy` of the variance, or `components` many.

    Computed in float64, in blocks. The largest entry of each component is made positive, which fixes its sign.

    Raises:
        SettingError: neither or both of `energy` and `components`, or one out of range.
    """
    width = pictures.shape[1]
    if (energy is None) is (components is None):
        raise SettingError(f"principal components: give energy or components, not both; got {energy} and {components}")
    if components is not None and not 1 <= components <= width:
        raise SettingError(f"principal components: wanted 1 to {width} of them, got {components}")
    if energy is not None and not 0 < energy <= 1:
        raise SettingError(f"principal components: wanted an energy in (0, 1], got {energy}")
    mean = torch.zeros(width, dtype=torch.float64)
    for block in pictures.split(BLOCK_ROWS):
        mean += block.double().sum(0)
    mean /= len(pictures)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for block in pictures.split(BLOCK_ROWS):
        centred = block.double() - mean
        scatter += centred.T @ centred
    values, vectors = torch.linalg.eigh(scatter)
    explained = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    if energy is not None:
        # The tolerance keeps rounding errors from adding a component.
        components = min(int((explained < energy - 1e-12).sum()) + 1, width)
    basis = vectors.flip(1).T[:components]
    kept = len(basis)
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return Principal(mean.float(), (basis * largest.sign()).float(), float(explained[kept - 1]))


def weaken(
    pictures: Float[Tensor, "N D"], mean: Float[Tensor, " D"], basis: Float[Tensor, "K D"]
) -> Float[Tensor, "N D"]:
    """Pictures projected on these components and reconstructed, (N, D)."""
    return mean + ((pictures - mean) @ basis.T) @ basis
