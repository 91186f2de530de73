"""Similarity-preserving distillation: rows alike to the teachers are alike to the student (Tung and Mori, 2019)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from crossdistill.losses.sp import similarity_preserving
from crossdistill.method import ActsOn, DataSpec, Method, Progress
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class SP(Weighted, FeatureConfig):
    """`CE + 3000 · difference of the rows' similarities`; by default in the last spatial tap, or else the last tap."""

    acts_on: ClassVar[ActsOn | None] = "last map"
    name: Literal["sp"] = "sp"
    weight: float = Field(3000.0, ge=0)

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """One feature of each network; shapes may differ."""
        return _SP(self, self.pairs("last", student, teachers), data.labelled_fraction)


class _SP(FeatureMethod):
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        rows = (progress.gather(side[-1].flatten(1)) for side in (mine, theirs))
        return {"sp": similarity_preserving(*rows)}
