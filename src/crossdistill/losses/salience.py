"""MGDFR's salience of a teacher's units (Xue et al., ICLR 2023, in MST-Distill's form)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def min_max(values: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Values scaled to [0, 1]; zeros if all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / torch.where(high > low, high - low, 1.0)


def least_salient(salience: Float[Tensor, " L"], fraction: float) -> Bool[Tensor, " L"]:
    """The `fraction` of the units with the lowest salience, rounded down; ties: lower index first."""
    chosen = salience.sort(stable=True).indices[: int(fraction * len(salience))]
    return torch.zeros_like(salience, dtype=torch.bool).index_fill(0, chosen, True)
