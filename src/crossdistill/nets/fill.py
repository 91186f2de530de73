"""Fill: replaces units of a tap by their mean (MGDFR)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

FillWith = Literal["mean", "batch", "none"]


class Fill(nn.Module):
    """Replaces some of a tap's units (channels of a map) by their mean over the training rows, or over the batch.

    `salience` (L,) in [0, 1], `replaced` (L,) and `mean` are measured by the method that has this module. The mean over
    the training rows makes a row's output independent of its batch, so that it can be banked; "batch" is the original
    MFH's; "none" replaces nothing, which MST-Distill's released code does unintentionally.
    """

    def __init__(self, shape: tuple[int, ...], fill: FillWith) -> None:
        super().__init__()
        self.fill = fill
        self.salience: Tensor
        self.replaced: Tensor
        self.mean: Tensor
        self.register_buffer("salience", torch.zeros(shape[0]))
        self.register_buffer("replaced", torch.zeros(shape[0], dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(shape))

    @property
    def by_row(self) -> bool:
        """Whether the result of a row is independent of the other rows of the batch."""
        return self.fill != "batch"

    def extra_repr(self) -> str:
        """The settings that are not in the state dict; they are part of the keys of banks."""
        return f"fill={self.fill}"

    def forward(self, value: Float[Tensor, "B L *space"]) -> Float[Tensor, "B L *space"]:
        """The tap's value with the chosen units replaced."""
        if self.fill == "none" or len(value) == 0:
            return value
        mean = self.mean.to(value.dtype) if self.fill == "mean" else value.mean(0)
        return torch.where(self.replaced.view(-1, *[1] * (value.ndim - 2)), mean, value)
