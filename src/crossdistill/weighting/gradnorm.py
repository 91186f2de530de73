"""Task weights that balance gradient norms by the training rates of the losses (Chen et al., ICML 2018)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from crossdistill.weighting.separate import Separate
from crossdistill.weighting.weighting import Turn, Weighting, WeightingConfig


class GradNorm(Separate):
    """Gradient normalisation, Chen et al., ICML 2018: balances gradient norms by training rates.

    With G groups, n = norm of w · L's gradient over `parameters`, m the mean of n over groups and r a group's
    L / L(0) divided by the mean of that over groups, each w is updated by one gradient step on |n - m · r^alpha|
    (with a constant target); then the w are scaled to sum to G. Departures from the paper: the norm is over all
    trained parameters, not one shared layer, and w is updated by plain gradient descent. Losses must be positive.
    """

    def __init__(self, groups: Sequence[str], alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        super().__init__(groups)
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.factors: Tensor
        self.first: Tensor
        self.register_buffer("factors", torch.ones(len(self.groups)))
        # NaN before the first step.
        self.register_buffer("first", torch.full((len(self.groups),), torch.nan))
        self._pending: tuple[Tensor, Tensor] | None = None

    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The weighted sum; the weights are updated in `after_step`."""
        factors = self.factors.to(gradients)
        # A group without rows in this step has loss 0: neither a first value nor a pace.
        there = losses != 0
        first = torch.where(self.first.isnan() & there, losses, self.first.to(losses))
        norms = gradients.norm(dim=1) / turn.scale(torch.ones((), device=gradients.device, dtype=gradients.dtype))
        pulls = factors * norms
        pace = losses / first
        targets = pulls.mean() * (pace / pace.mean()) ** self.alpha
        moved = (factors - self.learning_rate * torch.sign(pulls - targets) * norms).clamp_min(0.0)
        moved = moved * (len(self.groups) / moved.sum())
        # An overflow in mixed precision skips the optimizer's step and must not change the weights either.
        self._pending = (torch.where(moved.isfinite().all() & there.all(), moved, factors), first)
        return factors @ gradients

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The learned w."""
        return dict(zip(self.groups, self.factors.unbind(), strict=True))

    def after_step(self) -> None:
        """Update the weights, and store the first step's losses."""
        if self._pending is not None:
            factors, first = self._pending
            self.factors.copy_(factors)
            self.first.copy_(first)
            self._pending = None


class GradNormConfig(WeightingConfig):
    """Gradient normalisation."""

    makes: ClassVar[type[Weighting]] = GradNorm
    name: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(
        1.5, ge=0, description="exponent of the training rates; higher favours slow groups more; dimensionless"
    )
    learning_rate: float = Field(0.025, gt=0, description="of the weights; dimensionless")
