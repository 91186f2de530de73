"""Multi-level logit distillation as published: two views, five temperatures, less certain half (Jin et al., 2023)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.losses.correlation import class_correlation, row_correlation
from crossdistill.losses.kl import distillation_kl, log_probabilities
from crossdistill.losses.standardise import standardised
from crossdistill.method import STUDENT, ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import Lesson, LogitConfig, lesson_term, lessons, seen_everywhere
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class MLKD(Weighted, LogitConfig):
    """`0.1 · CE + 0.9 · (T² · KL on both views, class and row correlation on the weak one)`, at T and 3, 5, 2, 6.

    On the weak view only the rows (and classes) count of which the teacher is no surer than of the median one. The
    strong view is the rendering `modality@strong` of the data, where `strong` names one; else the one view there is
    plays both parts.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["mlkd"] = "mlkd"
    weight_task: float = Field(0.1, ge=0)
    weight: float = Field(0.9, ge=0)
    temperature: float = Field(4.0, gt=0)
    """The first of the temperatures; dimensionless."""
    temperatures: tuple[float, ...] = (3.0, 5.0, 2.0, 6.0)
    """The others."""
    strong: str | None = None
    """Name of the strongly augmented rendering of the student's and the teachers' inputs."""
    masks: Literal["rows", "scalar", "none"] = "rows"
    """"scalar" multiplies whole terms by the fraction of rows below the median, as the released code does."""
    released_views: bool = False
    """Take the weak view for T = 2 and 6 of the strong terms too (a slip of the released code)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes, one prediction a row."""
        self.check(student, teachers, dense=False)
        return _MLKD(self, teachers, data.labelled_fraction)


class _MLKD(Method):
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: MLKD, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Signal.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config = self.config
        weak = student(batch)
        other = batch if config.strong is None else batch.rendered(config.strong)
        strong = weak if config.strong is None else student(other)
        task, distil = config.shares_at(progress.epoch)
        fraction = self.labelled_fraction
        terms = {
            "task/weak": task_term(weak, batch, fraction=fraction, weight=task),
            "task/strong": task_term(strong, other, fraction=fraction, weight=task),
        }
        given = {name: teachers[name] for name in self.teachers}
        on_weak = lessons(config, weak, batch, given)
        on_strong = on_weak if config.strong is None else lessons(config, strong, other, given)
        # Correlations take logits as they are, whatever is standardised.
        plain = lessons(config.model_copy(update={"standardise": False}), weak, batch, given)
        for first, second, raw in zip(on_weak, on_strong, plain, strict=True):
            rows, classes = self._masks(raw, progress)
            found = self._rows((weak, first), (strong, second), rows, progress)
            found |= self._correlations(weak.need(Signal.LOGITS), raw, rows, classes, progress)
            for name, value in found.items():
                term = lesson_term(first, value)
                terms[f"{name}/{first.name}"] = replace(term, weight=term.weight * distil)
        return Step(terms, weak)

    def _masks(self, lesson: Lesson, progress: Progress) -> tuple[Tensor, Tensor]:
        """1 for each row (R,) and each class (C,) of which the teacher is no surer than of the median one, else 0."""
        sure = log_probabilities(lesson.at(1.0), 1.0).exp()
        (everyone,) = seen_everywhere(progress, lesson, [sure])
        if self.config.masks == "none" or len(everyone) == 0:
            return torch.ones_like(sure[:, 0]), torch.ones_like(sure.sum(0))
        highest, by_class = everyone.amax(1), everyone.sum(0)
        rows = sure.amax(1) <= highest.quantile(0.5)
        return rows.to(sure.dtype), (by_class <= by_class.quantile(0.5)).to(sure.dtype)

    def _rows(
        self, weak: tuple[Outputs, Lesson], strong: tuple[Outputs, Lesson], mask: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Divergences of both views, row by row."""
        config = self.config
        every = (config.temperature, *config.temperatures)
        slip = {2.0, 6.0} if config.released_views else set()
        if config.masks == "scalar":
            (everyone,) = seen_everywhere(progress, weak[1], [mask])
            mask = everyone.mean().expand_as(mask)
        return {
            "weak": mask * torch.stack([self._divergence(*weak, t) for t in every]).sum(0),
            "strong": torch.stack([self._divergence(*(weak if t in slip else strong), t) for t in every]).sum(0),
        }

    def _divergence(self, student: Outputs, lesson: Lesson, temperature: float) -> Tensor:
        logits = student.need(Signal.LOGITS)
        logits = standardised(logits) if self.config.standardise else logits
        return distillation_kl(logits, lesson.at(temperature), temperature)

    def _correlations(
        self, logits: Tensor, lesson: Lesson, rows: Tensor, classes: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Of the weak view, over the rows of all ranks."""
        every = (self.config.temperature, *self.config.temperatures)
        found = seen_everywhere(progress, lesson, [rows, logits, *(lesson.at(t) for t in every)])
        (rows, mine), theirs = found[:2], found[2:]
        if self.config.masks == "scalar":
            rows, classes = (mask.mean().expand_as(mask) for mask in (rows, classes))
        pairs = list(zip(theirs, every, strict=True))
        return {
            "classes": torch.stack([class_correlation(mine, one, t, classes=classes) for one, t in pairs]).sum(),
            "batch": torch.stack([row_correlation(mine, one, t, rows=rows) for one, t in pairs]).sum(),
        }
