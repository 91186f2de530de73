"""Probabilistic knowledge transfer: matches the similarity distributions of rows (Passalis and Tefas, 2018)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.losses.pkt import probabilistic_transfer
from crossdistill.losses.spatial import as_vector
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class PKT(FeatureConfig):
    """`CE + 30000 · divergence of the similarity distributions`; by default of the embedding or the last tap."""

    acts_on: ClassVar[ActsOn | None] = "last"
    name: Literal["pkt"] = "pkt"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(30000.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Selects one feature of each network; sizes may differ."""
        return _PKT(self, self.pairs("vector", student, teachers), data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _PKT(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def __init__(self, config: PKT, pairs: Pairs, labelled_fraction: float) -> None:
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
            mine, theirs = (progress.gather(as_vector(side[-1])) for side in (features.student, features.teacher))
            terms[f"pkt/{features.name}"] = features.term(probabilistic_transfer(mine, theirs))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
