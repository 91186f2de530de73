"""Attention transfer: the student looks where the teachers look (Zagoruyko and Komodakis, ICLR 2017)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.losses.at import attention_transfer
from crossdistill.method import ActsOn, DataSpec, Method, Progress
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, require_positions
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class AT(Weighted, FeatureConfig):
    """`CE + 1000 · Σ over stages of the attention maps' mean squared difference`; by default over all spatial taps."""

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["at"] = "at"
    weight: float = Field(1000.0, ge=0)
    power: float = Field(2.0, gt=0)
    """Dimensionless: attention is the mean over channels of |feature| to this power."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest.

        Raises:
            ApplicabilityError: a pair shares a single position.
        """
        pairs = self.pairs("maps", student, teachers)
        require_positions(self.name, pairs)
        return _AT(self, pairs, data.labelled_fraction)


class _AT(FeatureMethod):
    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        stages = [attention_transfer(*pair, self.config.power) for pair in zip(mine, theirs, strict=True)]
        return {"at": torch.stack(stages).sum(0)}
