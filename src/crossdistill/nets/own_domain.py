"""A teacher's confidence that a row is of its own domain, by its own features, for soft routing.

The formula is ours; USAD 2.0 (2606.06444) asks for weights by how well domains match. Two Gaussians of diagonal
covariance describe the mean feature of a row, of the teacher's own domain and of all others, as distances to Gaussians
of features tell known from unknown inputs (Lee et al., NeurIPS 2018).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crossdistill.nets.standardisation import Moments, Standardisation

SHRINKAGE, LEAST = 0.1, 1e-12
"""A share of the mean variance keeps channels that hardly vary from deciding; LEAST, those of no variance at all."""


class OwnDomain(nn.Module):
    """The mean over channels of `log N(f; own) - log N(f; others)`; 0 until `settle` has seen rows of both kinds.

    A variance counts as `var_j + 0.1 · mean var`. The mean over channels, not their sum, since channels depend on each
    other; so teachers of other widths compare. Dimensionless (nats for a channel).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(2, width))
        self.register_buffer("variance", torch.ones(2, width))

    def forward(self, feature: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The log-odds of each row's mean feature (`mean_position`), in float32 at least, also under autocast."""
        with torch.autocast(feature.device.type, enabled=False):
            exact = torch.promote_types(feature.dtype, torch.float32)
            mean, variance = self.mean.to(exact), self.variance.to(exact)
            apart = (feature.to(exact).unsqueeze(1) - mean).square() / variance + variance.log()
            return (apart[:, 1] - apart[:, 0]).mean(1) / 2

    def moments(self) -> tuple[Moments, Moments]:
        """Empty sums over rows of the own domain, and over others."""
        of = Standardisation("z-score", self.mean.shape[1]).to(self.mean.device)
        return Moments(of), Moments(of)

    def settle(self, moments: tuple[Moments, Moments]) -> None:
        """Set means and variances, if there were rows of both kinds."""
        if not all(len(sums) for sums in moments):
            return
        for place, sums in enumerate(moments):
            variance = sums.covariance()
            self.mean[place] = sums.mean()
            self.variance[place] = variance + SHRINKAGE * variance.mean() + LEAST


def mean_position(feature: Float[Tensor, "B P D"], valid: Bool[Tensor, "B P"] | None) -> Float[Tensor, "B D"]:
    """The mean over a row's valid positions, in float32 at least."""
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    if valid is None:
        return feature.mean(1)
    return feature.where(valid.unsqueeze(2), 0.0).sum(1) / valid.sum(1).clamp_min(1).unsqueeze(1)
