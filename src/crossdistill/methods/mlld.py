"""Multi-level logit distillation in MST-Distill's variant: rows, classes and batch at five temperatures."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.losses.correlation import Reduction, class_correlation, row_correlation
from crossdistill.losses.kl import distillation_kl
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import (
    LogitConfig,
    needs_logits,
    seen_everywhere,
    student_logits,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import AlphaDecay, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class MLLD(LogitConfig):
    """`(1 - a) · CE + a · mean over temperatures of (T² · KL + class correlation + row correlation) / 3`.

    After Jin, Wang and Lin, CVPR 2023; their published form is the method `mlkd`. This variant averages over the
    entries of the correlations, and uses one view of each row and no masks.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["mlld"] = "mlld"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay."""
    temperatures: tuple[float, ...] = Field((2.0, 3.0, 4.0, 5.0, 6.0), min_length=1)
    """Dimensionless."""
    correlations: Reduction = "mean"
    """Reduction of the correlations' squared differences: the mean over entries, or as originally published."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes, with one prediction per row."""
        self.check(student, teachers, dense=False)
        return _MLLD(self, teachers, data.labelled_fraction)

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _MLLD(Method):
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "soft"})
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: MLLD, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        teachers = {name: teachers[name] for name in self.teachers}
        config = self.config
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        logits = student_logits(config, outputs)
        terms = {}
        for prediction in teacher_predictions(config, outputs, batch, teachers):
            rows, classes, pairs_of_rows = [], [], []
            for temperature in config.temperatures:
                teacher = prediction.at(temperature)
                rows.append(distillation_kl(logits, teacher, temperature))
                mine, theirs = seen_everywhere(progress, prediction, (logits, teacher))
                classes.append(class_correlation(mine, theirs, temperature, config.correlations))
                pairs_of_rows.append(row_correlation(mine, theirs, temperature, config.correlations))
            for level, values in (("rows", rows), ("classes", classes), ("batch", pairs_of_rows)):
                terms[f"{level}/{prediction.name}"] = prediction.term(torch.stack(values).mean(0) / 3)
        return weighted_step(config.loss_weights(), progress, outputs, task, terms)
