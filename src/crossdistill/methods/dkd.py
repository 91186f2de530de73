"""Decoupled distillation: target and other classes weigh separately (Zhao et al., CVPR 2022)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.dkd import other_classes_kl, target_class_kl
from crossdistill.method import ActsOn, DataSpec, Method
from crossdistill.methods.logit_method import Lesson, LogitConfig, LogitMethod, Pupil
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class DKD(Weighted, LogitConfig):
    """`CE + alpha · TCKD + beta · NCKD`, after a warm-up of 20 epochs.

    With `standardise`, the published setting is T = 2 and both weights nine times as large.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["dkd"] = "dkd"
    warm_up: int = Field(20, ge=0)
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(8.0, ge=0)
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    unlabelled: Literal["teacher", "skip"] = "teacher"
    """In rows without a label, take the teacher's most probable class for the target, or leave them out."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes.

        Raises:
            ApplicabilityError: fewer than three classes, between which there is nothing to decouple; or dense logits.
        """
        self.check(student, teachers, dense=False)
        if student.classes < 3:
            raise ApplicabilityError(
                f"dkd distils what the classes besides the target share; with {student.classes} classes that is nothing"
            )
        return _DKD(self, teachers, data.labelled_fraction)


class _DKD(LogitMethod):
    def compare(self, pupil: Pupil, lesson: Lesson) -> Mapping[str, Tensor]:
        config = self.config
        teacher = lesson.at(config.temperature)
        targets = pupil.targets
        if config.unlabelled == "teacher":
            targets = torch.where(targets == MISSING_TARGET, teacher.argmax(1), targets)
        given = (pupil.logits, teacher, targets, config.temperature)
        return {
            "target": config.alpha * target_class_kl(*given),
            "others": config.beta * other_classes_kl(*given),
        }
