"""Batch norm for the modules of methods: over the rows of all ranks, without running statistics."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]
"""A function from the rows of this rank to those of all ranks."""


def alone(rows: Tensor) -> Tensor:
    """The rows of this rank, for runs with one rank."""
    return rows


class JointNorm(nn.Module):
    """Normalises each channel to mean 0 and variance 1 over rows and positions, then scales and shifts it.

    Like `BatchNorm` in train mode, except that it has no running statistics (the modules are discarded after training),
    that statistics are those of all ranks, and that a single value is normalised to 0, so that the result is the
    shift.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, value: Float[Tensor, "B C *space"], gather: Gather = alone) -> Float[Tensor, "B C *space"]:
        """Normalise; `gather` returns the rows of all ranks."""
        flat = value.flatten(2) if value.ndim > 2 else value.unsqueeze(2)
        # Ranks exchange only the means of each row's channels, not its positions.
        mean = _mean(gather(flat.mean(2))).unsqueeze(1)
        variance = _mean(gather((flat - mean).square().mean(2))).unsqueeze(1)
        scale = self.weight.unsqueeze(1) * torch.rsqrt(variance + self.epsilon)
        return ((flat - mean) * scale + self.bias.unsqueeze(1)).view(value.shape)


class Layers(nn.Sequential):
    """A sequence of layers whose norms use the rows of all ranks."""

    def forward(self, value: Tensor, gather: Gather = alone) -> Tensor:
        """The output of the last layer."""
        for layer in self:
            value = layer(value, gather) if isinstance(layer, JointNorm | Layers) else layer(value)
        return value


def _mean(rows: Tensor) -> Tensor:
    return rows.sum(0) / max(1, len(rows))
