"""Probabilistic knowledge transfer: rows are neighbours as they are to the teachers (Passalis and Tefas, 2018)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from crossdistill.losses.pkt import probabilistic_transfer
from crossdistill.losses.spatial import as_vector
from crossdistill.method import ActsOn, DataSpec, Method, Progress
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class PKT(Weighted, FeatureConfig):
    """`CE + 30000 · divergence of the neighbourhoods`; by default of the embedding or the last tap."""

    acts_on: ClassVar[ActsOn | None] = "last"
    name: Literal["pkt"] = "pkt"
    weight: float = Field(30000.0, ge=0)

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """One feature of each network; sizes may differ."""
        return _PKT(self, self.pairs("vector", student, teachers), data.labelled_fraction)


class _PKT(FeatureMethod):
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        rows = (progress.gather(as_vector(side[-1])) for side in (mine, theirs))
        return {"pkt": probabilistic_transfer(*rows)}
