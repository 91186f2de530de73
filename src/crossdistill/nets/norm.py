"""Batch norm for what methods add: over the rows of all ranks, without running statistics."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]
"""The rows of all ranks, from those of this one."""


def alone(rows: Tensor) -> Tensor:
    """The rows of this rank, which is the only one."""
    return rows


class JointNorm(nn.Module):
    """Each channel to mean 0 and variance 1 over rows and positions, then scaled and shifted.

    As `BatchNorm` in train mode, except that it holds no state that a forward pass would move (projectors are thrown
    away after training, so nobody reads running statistics), that several ranks normalise as one, and that a single
    value gives the shift alone.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, value: Float[Tensor, "B C *space"], gather: Gather = alone) -> Float[Tensor, "B C *space"]:
        """Normalise; `gather` brings the other ranks' rows."""
        flat = value.flatten(2) if value.ndim > 2 else value.unsqueeze(2)
        # Of each row only its channels' means cross the ranks, not its positions.
        mean = _mean(gather(flat.mean(2))).unsqueeze(1)
        variance = _mean(gather((flat - mean).square().mean(2))).unsqueeze(1)
        scale = self.weight.unsqueeze(1) * torch.rsqrt(variance + self.epsilon)
        return ((flat - mean) * scale + self.bias.unsqueeze(1)).view(value.shape)


class Layers(nn.Sequential):
    """Layers one after another, of which the norms see the rows of all ranks."""

    def forward(self, value: Tensor, gather: Gather = alone) -> Tensor:
        """The last layer's result."""
        for layer in self:
            value = layer(value, gather) if isinstance(layer, JointNorm | Layers) else layer(value)
        return value


def _mean(rows: Tensor) -> Tensor:
    return rows.sum(0) / max(1, len(rows))
