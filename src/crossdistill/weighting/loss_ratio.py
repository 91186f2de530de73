"""Weights from the rate of decrease of each loss (Liu, Johns and Davison, CVPR 2019)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from crossdistill.weighting.weighting import Change, Turn, Weighting, WeightingConfig, one_pass


class LossRatio(Weighting):
    """Dynamic weight averaging, Liu, Johns and Davison, CVPR 2019: larger weights for slowly falling losses.

    With G groups and L the mean of a group over an epoch, the factors in epoch t are
    G · softmax(L(t-1) / L(t-2) / temperature); they are 1 in the first two epochs. Losses must be positive.
    """

    def __init__(self, groups: Sequence[str], temperature: float = 2.0) -> None:
        super().__init__(groups)
        self.temperature = temperature
        size = len(self.groups)
        self.factors: Tensor
        self.sums: Tensor
        self.steps: Tensor
        self.previous: Tensor
        self.register_buffer("factors", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # NaN before the end of the first epoch.
        self.register_buffer("previous", torch.full((size,), torch.nan))
        self._pending: Tensor | None = None

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One backward pass over the weighted sum; the values are stored until `after_step`."""
        one_pass([self.factors[index] * total for index, total in enumerate(totals.values())], turn)
        values = torch.stack([total.detach() for total in totals.values()]).to(self.sums)
        self._pending = values if self._pending is None else self._pending + values

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The factors of this epoch."""
        return dict(zip(self.groups, self.factors.unbind(), strict=True))

    def after_step(self) -> None:
        """Add the step to the epoch's mean."""
        if self._pending is not None:
            self.sums += self._pending
            self.steps += 1
            self._pending = None

    def after_epoch(self, reduce: Change | None = None) -> None:
        """Compute the next epoch's factors from the means of the last two."""
        means = (self.sums if reduce is None else reduce(self.sums)) / self.steps
        ratios = torch.where(self.previous.isnan(), 1.0, means / self.previous)
        self.factors.copy_(len(self.groups) * torch.softmax(ratios / self.temperature, 0))
        self.previous.copy_(means)
        self.sums.zero_()
        self.steps.zero_()


class LossRatioConfig(WeightingConfig):
    """Dynamic weight averaging."""

    makes: ClassVar[type[Weighting]] = LossRatio
    name: Literal["loss-ratio"] = "loss-ratio"
    temperature: float = Field(2.0, gt=0, description="dimensionless; higher means more equal factors")
