"""Distillation of singular vectors: how a map's main directions move from stage to stage (Lee et al., ECCV 2018)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from crossdistill.losses.kdsvd import singular_flow
from crossdistill.method import ActsOn, DataSpec, Method, Progress
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, require_positions
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class KDSVD(Weighted, FeatureConfig):
    """`CE + the difference of flows between consecutive stages`; by default over all spatial taps."""

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["kdsvd"] = "kdsvd"
    k: int = Field(1, ge=1)
    """Singular vectors of the teacher for each stage; of the student there are three more to choose from."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest.

        Raises:
            ApplicabilityError: a network shows fewer than two spatial features, so that there is no flow between them,
                or a pair shares a single column, whose direction is always the same.
        """
        pairs = self.pairs("maps", student, teachers, least=2)
        require_positions(self.name, pairs, wide=True)
        return _KDSVD(self, pairs, data.labelled_fraction)


class _KDSVD(FeatureMethod):
    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        return {"kdsvd": singular_flow(mine, theirs, self.config.k)}
