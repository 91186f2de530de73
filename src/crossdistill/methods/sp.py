"""Similarity-preserving distillation: matches the pairwise similarities of rows (Tung and Mori, 2019)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.losses.sp import similarity_preserving
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class SP(FeatureConfig):
    """`CE + 3000 · difference of the rows' similarities`; by default in the last spatial tap, or else the last tap."""

    acts_on: ClassVar[ActsOn | None] = "last map"
    name: Literal["sp"] = "sp"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(3000.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Selects one feature of each network; shapes may differ."""
        return _SP(self, self.pairs("last", student, teachers), data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _SP(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def __init__(self, config: SP, pairs: Pairs, labelled_fraction: float) -> None:
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
            mine, theirs = (progress.gather(side[-1].flatten(1)) for side in (features.student, features.teacher))
            terms[f"sp/{features.name}"] = features.term(similarity_preserving(mine, theirs))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
