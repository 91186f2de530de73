"""Multi-level logit distillation as MST-Distill compares with it: rows, classes and batch at five temperatures."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.losses.correlation import Reduction, class_correlation, row_correlation
from crossdistill.losses.kl import distillation_kl
from crossdistill.method import ActsOn, DataSpec, Method
from crossdistill.methods.logit_method import Lesson, LogitConfig, LogitMethod, Pupil, seen_everywhere
from crossdistill.methods.loss_weights import Mixed
from crossdistill.outputs import OutputSpec


class MLLD(Mixed, LogitConfig):
    """`(1 - a) · CE + a · mean over temperatures of (T² · KL + class correlation + row correlation) / 3`.

    After Jin, Wang and Lin, CVPR 2023, whose own form is the method `mlkd`: this one takes means over the entries of
    the correlations, has one view of each row and no masks.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["mlld"] = "mlld"
    temperatures: tuple[float, ...] = Field((2.0, 3.0, 4.0, 5.0, 6.0), min_length=1)
    """Dimensionless."""
    correlations: Reduction = "mean"
    """Over the entries of the correlations' squared difference, or as originally published."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes, one prediction a row."""
        self.check(student, teachers, dense=False)
        return _MLLD(self, teachers, data.labelled_fraction)


class _MLLD(LogitMethod):
    batch_relational: ClassVar[bool] = True

    def compare(self, pupil: Pupil, lesson: Lesson) -> Mapping[str, Tensor]:
        rows, classes, batch = [], [], []
        for temperature in self.config.temperatures:
            teacher = lesson.at(temperature)
            rows.append(distillation_kl(pupil.logits, teacher, temperature))
            mine, theirs = seen_everywhere(pupil.progress, lesson, (pupil.logits, teacher))
            classes.append(class_correlation(mine, theirs, temperature, self.config.correlations))
            batch.append(row_correlation(mine, theirs, temperature, self.config.correlations))
        levels = {"rows": rows, "classes": classes, "batch": batch}
        return {name: torch.stack(values).mean(0) / 3 for name, values in levels.items()}
