"""Distillation of singular vectors: the change of a map's main directions between stages (Lee et al., ECCV 2018)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.losses.kdsvd import singular_flow
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs, require_positions
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class KDSVD(FeatureConfig):
    """`CE + the difference of flows between consecutive stages`; by default over all spatial taps."""

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["kdsvd"] = "kdsvd"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    k: int = Field(1, ge=1)
    """Singular vectors of the teacher for each stage; the student has three more candidates."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest.

        Raises:
            ApplicabilityError: a network has fewer than two spatial features, so that there is no flow between them,
                or the shared size of a pair is one column, whose direction is constant.
        """
        pairs = self.pairs("maps", student, teachers, least=2)
        require_positions(self.name, pairs, wide=True)
        return _KDSVD(self, pairs, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _KDSVD(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK

    def __init__(self, config: KDSVD, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            if features.empty():
                terms[f"kdsvd/{features.name}"] = features.empty_term()
                continue
            rows = singular_flow(features.student, features.teacher, self.config.k)
            terms[f"kdsvd/{features.name}"] = features.term(rows)
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
