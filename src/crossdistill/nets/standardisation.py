"""Standardisation of a teacher's feature by statistics of the training rows: z-score, or PHI-S (arXiv 2410.01680)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.nets.hadamard import even_rotation

Standardise = Literal["none", "z-score", "phi-s"]
"""Leave the feature as it is; mean 0 and variance 1 for each channel; or PHI-S: mean 0, rotated to its principal
components and on by a Hadamard matrix, so that all channels have the same variance, and divided by one number for all,
so that distances keep their proportions."""


class Standardisation(nn.Module):
    """A teacher's feature of `width` channels, standardised; the identity until `settle` has statistics.

    `variance` is the mean variance of a channel after standardisation, in the squared unit of the result.
    """

    def __init__(self, kind: Standardise, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.mean: Tensor
        self.scale: Tensor
        self.variance: Tensor
        self.rotation: Tensor | None
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("rotation", torch.eye(width) if kind == "phi-s" else None)

    def forward(self, feature: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """The standardised feature, in float32 at least, also under autocast."""
        if self.kind == "none":
            return feature
        with torch.autocast(feature.device.type, enabled=False):
            exact = torch.promote_types(feature.dtype, torch.float32)
            centred = feature.to(exact) - self.mean.to(exact)
            turned = centred if self.rotation is None else centred @ self.rotation.to(exact).T
            return turned * self.scale.to(exact)

    def settle(self, moments: "Moments") -> None:
        """Set the statistics. A channel without variance keeps its unit."""
        covariance = moments.covariance()
        variances = covariance.diagonal() if covariance.ndim == 2 else covariance
        if self.kind == "none":
            self.variance.copy_(variances.mean())
            return
        self.mean.copy_(moments.mean())
        if self.rotation is None:
            self.scale.copy_(_inverse_root(variances))
            return
        values, vectors = torch.linalg.eigh(covariance.cpu())
        # The sign of an eigenvector is not determined: its largest entry is made positive.
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.rotation.copy_(even_rotation(values.clamp(min=0)) @ (vectors * largest.sign()).T)
        self.scale.fill_(_inverse_root(variances.mean()))


def _inverse_root(variance: Tensor) -> Tensor:
    return torch.where(variance > 1e-12, variance.clamp(min=1e-12).rsqrt(), 1.0)


class Moments:
    """The mean and the (co)variance of the channels over all rows and positions, summed in double precision."""

    def __init__(self, of: Standardisation) -> None:
        exact = torch.float64 if of.mean.device.type != "mps" else torch.float32
        width, device = len(of.mean), of.mean.device
        self._count = 0
        self._shift = torch.zeros(width, dtype=exact, device=device)
        self._sum = torch.zeros(width, dtype=exact, device=device)
        self._products = torch.zeros((width, width) if of.kind == "phi-s" else width, dtype=exact, device=device)

    def __len__(self) -> int:
        """Positions added so far."""
        return self._count

    def add(self, feature: Float[Tensor, "B P D"]) -> None:
        """Add the rows of a batch."""
        values = feature.detach().flatten(0, 1).to(self._sum.dtype)
        if self._count == 0 and len(values):
            # Moments about a value of the data: sums about zero would lose digits where the mean is large.
            self._shift = values.mean(0)
        values = values - self._shift
        self._count += len(values)
        self._sum += values.sum(0)
        self._products += values.T @ values if self._products.ndim == 2 else values.square().sum(0)

    def mean(self) -> Float[Tensor, " D"]:
        """The mean of each channel."""
        return self._shift + self._sum / max(self._count, 1)

    def covariance(self) -> Tensor:
        """The covariance (D, D) for PHI-S, else the variances (D,), with divisor N."""
        count, mean = max(self._count, 1), self._sum / max(self._count, 1)
        if self._products.ndim == 2:
            return self._products / count - torch.outer(mean, mean)
        return (self._products / count - mean.square()).clamp(min=0)
