"""Decoupled distillation: separate weights for the target and the other classes (Zhao et al., CVPR 2022)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.dkd import other_classes_kl, target_class_kl
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import (
    LogitConfig,
    needs_logits,
    student_logits,
    student_targets,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class DKD(LogitConfig):
    """`CE + alpha · TCKD + beta · NCKD`, after a warm-up of 20 epochs.

    With `standardise`, the published setting is T = 2 and both weights nine times as large.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["dkd"] = "dkd"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(20, ge=0)
    """Length of the warm-up, in epochs."""
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(8.0, ge=0)
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    unlabelled: Literal["teacher", "skip"] = "teacher"
    """For rows without a label: use the teacher's most probable class as the target, or omit the row."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes.

        Raises:
            ApplicabilityError: fewer than three classes, so that nothing can be decoupled; or dense logits.
        """
        self.check(student, teachers, dense=False)
        if student.classes < 3:
            raise ApplicabilityError(
                "dkd distils the distribution over the classes other than the target, of which "
                f"{student.classes} classes leave only one; take kd"
            )
        return _DKD(self, teachers, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _DKD(Method):
    def __init__(self, config: DKD, teachers: Iterable[str], labelled_fraction: float) -> None:
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
        logits, known = student_logits(config, outputs), student_targets(outputs, batch)
        terms = {}
        for prediction in teacher_predictions(config, outputs, batch, teachers):
            teacher, targets = prediction.at(config.temperature), known
            if config.unlabelled == "teacher":
                targets = torch.where(known == MISSING_TARGET, teacher.argmax(1), known)
            target = target_class_kl(logits, teacher, targets, config.temperature)
            others = other_classes_kl(logits, teacher, targets, config.temperature)
            terms[f"target/{prediction.name}"] = prediction.term(config.alpha * target)
            terms[f"others/{prediction.name}"] = prediction.term(config.beta * others)
        return weighted_step(config.loss_weights(), progress, outputs, task, terms)
