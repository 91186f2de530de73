"""Weights from a learned noise level of each task (Kendall, Gal and Cipolla, CVPR 2018)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from crossdistill.errors import SettingError
from crossdistill.weighting.weighting import Turn, Weighting, WeightingConfig, one_pass


class Uncertainty(Weighting):
    """Homoscedastic uncertainty, Kendall, Gal and Cipolla, CVPR 2018: sum of exp(-s) · L + s / 2 over groups.

    s = log σ² is learned, one number per group, with initial value 0. Groups in `regression` are squared errors with
    the factor exp(-s) / 2 (the paper's equation 7), the others exp(-s) (equation 10). `log_variances` must be in
    the optimizer, without weight decay, and in the all-reduce.
    """

    def __init__(self, groups: Sequence[str], regression: Sequence[str] = ()) -> None:
        super().__init__(groups)
        unknown = sorted(set(regression) - set(groups))
        if unknown:
            raise SettingError(f"uncertainty weighting: regression groups {unknown} are not among {sorted(groups)}")
        self.log_variances = nn.Parameter(torch.zeros(len(self.groups)))
        self.halves: Tensor
        halves = torch.tensor([0.5 if group in regression else 1.0 for group in self.groups])
        self.register_buffer("halves", halves, persistent=False)

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One backward pass, which includes the log-variances."""
        factors = self._factors()
        losses = [factors[index] * total for index, total in enumerate(totals.values())]
        one_pass([*losses, turn.fraction * 0.5 * self.log_variances.sum()], turn)

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """exp(-s), halved for regression."""
        return dict(zip(self.groups, self._factors().detach().unbind(), strict=True))

    def _factors(self) -> Tensor:
        return self.halves * torch.exp(-self.log_variances)


class UncertaintyConfig(WeightingConfig):
    """Learned log-variances."""

    makes: ClassVar[type[Weighting]] = Uncertainty
    name: Literal["uncertainty"] = "uncertainty"
    regression: tuple[str, ...] = Field((), description="groups whose terms are squared errors")
