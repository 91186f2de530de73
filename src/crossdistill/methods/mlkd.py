"""Multi-level logit distillation as published: two views, five temperatures, median masks (Jin et al., 2023)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch, Task
from crossdistill.losses.correlation import class_correlation, row_correlation
from crossdistill.losses.kl import distillation_kl, log_probabilities
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import (
    LogitConfig,
    TeacherPrediction,
    needs_logits,
    seen_everywhere,
    student_logits,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import Warmup
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class MLKD(LogitConfig):
    """`0.1 · CE + 0.9 · (T² · KL on both views, class and row correlation on the weak one)`, at T and 3, 5, 2, 6.

    The terms of the weak view use only the rows (and classes) whose teacher confidence is at most the median. The
    strong view is the rendering `modality@strong` of the data if `strong` names one; otherwise the single view is used
    for both.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["mlkd"] = "mlkd"
    weight_task: float = Field(0.1, ge=0)
    weight: float = Field(0.9, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    temperature: float = Field(4.0, gt=0)
    """The first of the temperatures; dimensionless."""
    temperatures: tuple[float, ...] = (3.0, 5.0, 2.0, 6.0)
    """The other temperatures (dimensionless)."""
    strong: str | None = None
    """Name of the strongly augmented rendering of the student's and the teachers' inputs."""
    masks: Literal["rows", "scalar", "none"] = "rows"
    """"scalar" multiplies whole terms by the fraction of rows below the median, as the released code does."""
    released_views: bool = False
    """Use the weak view for T = 2 and 6 of the strong terms too (an error of the released code)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes, with one prediction per row."""
        self.check(student, teachers, dense=False)
        return _MLKD(self, teachers, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _MLKD(Method):
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "soft"})
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: MLKD, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        teachers = {name: teachers[name] for name in self.teachers}
        config, fraction = self.config, self.labelled_fraction
        weak = student(batch)
        strong_batch = batch if config.strong is None else batch.rendered(config.strong)
        strong = weak if config.strong is None else student(strong_batch)
        task_weight, distil_weight = config.loss_weights().at(progress.epoch)
        terms = {
            "task/weak": task_term(weak, batch, fraction=fraction, weight=task_weight),
            "task/strong": task_term(strong, strong_batch, fraction=fraction, weight=task_weight),
        }
        on_weak = teacher_predictions(config, weak, batch, teachers)
        on_strong = on_weak if config.strong is None else teacher_predictions(config, strong, strong_batch, teachers)
        # Correlations use the logits without standardisation.
        plain = teacher_predictions(config.model_copy(update={"standardise": False}), weak, batch, teachers)
        for weak_teacher, strong_teacher, plain_teacher in zip(on_weak, on_strong, plain, strict=True):
            rows, classes = self._masks(plain_teacher, progress)
            losses = self._rows((weak, weak_teacher), (strong, strong_teacher), rows, progress)
            losses |= self._correlations(weak.need(Signal.LOGITS), plain_teacher, rows, classes, progress)
            for name, loss in losses.items():
                term = weak_teacher.term(loss)
                terms[f"{name}/{weak_teacher.name}"] = replace(term, weight=term.weight * distil_weight)
        return Step(terms, weak)

    def _masks(self, prediction: TeacherPrediction, progress: Progress) -> tuple[Tensor, Tensor]:
        """1 for each row (R,) and each class (C,) whose teacher confidence is at most the median, else 0."""
        sure = log_probabilities(prediction.at(1.0), 1.0).exp()
        (all_rows,) = seen_everywhere(progress, prediction, [sure])
        if self.config.masks == "none" or len(all_rows) == 0:
            return torch.ones_like(sure[:, 0]), torch.ones_like(sure.sum(0))
        highest, by_class = all_rows.amax(1), all_rows.sum(0)
        rows = sure.amax(1) <= highest.quantile(0.5)
        return rows.to(sure.dtype), (by_class <= by_class.quantile(0.5)).to(sure.dtype)

    def _rows(
        self,
        weak: tuple[Outputs, TeacherPrediction],
        strong: tuple[Outputs, TeacherPrediction],
        mask: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Divergences of both views, row by row."""
        config = self.config
        every = (config.temperature, *config.temperatures)
        slip = {2.0, 6.0} if config.released_views else set()
        if config.masks == "scalar":
            (all_rows,) = seen_everywhere(progress, weak[1], [mask])
            # The mean of no rows is NaN, and so would be the gradient of rows that the teacher lacks.
            mask = all_rows.mean().expand_as(mask) if len(all_rows) else mask
        return {
            "weak": mask * torch.stack([self._divergence(*weak, t) for t in every]).sum(0),
            "strong": torch.stack([self._divergence(*(weak if t in slip else strong), t) for t in every]).sum(0),
        }

    def _divergence(self, student: Outputs, prediction: TeacherPrediction, temperature: float) -> Tensor:
        return distillation_kl(student_logits(self.config, student), prediction.at(temperature), temperature)

    def _correlations(
        self, logits: Tensor, prediction: TeacherPrediction, rows: Tensor, classes: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Class and row correlations of the weak view, over the rows of all ranks."""
        every = (self.config.temperature, *self.config.temperatures)
        rows, mine, *theirs = seen_everywhere(
            progress, prediction, [rows, logits, *(prediction.at(temperature) for temperature in every)]
        )
        if self.config.masks == "scalar":
            rows, classes = (mask.mean().expand_as(mask) for mask in (rows, classes))
        pairs = list(zip(theirs, every, strict=True))
        by_class = [class_correlation(mine, teacher, t, classes=classes) for teacher, t in pairs]
        by_row = [row_correlation(mine, teacher, t, rows=rows) for teacher, t in pairs]
        return {"classes": torch.stack(by_class).sum(), "batch": torch.stack(by_row).sum()}
