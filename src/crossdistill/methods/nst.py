"""Neuron selectivity transfer: the student's channels respond as the teachers' do (Huang and Wang, 2017)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.losses.nst import selectivity_transfer
from crossdistill.method import ActsOn, DataSpec, Method, Progress
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, require_positions
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class NST(Weighted, FeatureConfig):
    """`CE + 50 · Σ over stages of the channels' mean discrepancy`; by default over all spatial taps."""

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["nst"] = "nst"
    weight: float = Field(50.0, ge=0)

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest.

        Raises:
            ApplicabilityError: a pair shares a single position.
        """
        pairs = self.pairs("maps", student, teachers)
        require_positions(self.name, pairs)
        return _NST(self, pairs, data.labelled_fraction)


class _NST(FeatureMethod):
    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        stages = [selectivity_transfer(*pair) for pair in zip(mine, theirs, strict=True)]
        return {"nst": torch.stack(stages).sum(0)}
