"""Functions for methods on logits: the teachers' predictions for the student's rows, and the student's targets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.kl import log_probabilities
from crossdistill.losses.standardise import standardised
from crossdistill.losses.task import task_loss
from crossdistill.method import STUDENT, MethodConfig, Progress, Term
from crossdistill.methods.logit_shapes import ON_FEATURES, require_same_logits
from crossdistill.outputs import Outputs, OutputSpec, Signal, spread
from crossdistill.teacher import Teacher

WEIGHTED = ("weighted", "logits")
"""Combinations that read `teacher_weights`."""


class LogitConfig(MethodConfig):
    """Settings of every method that distils logits: combination of several teachers, and standardisation."""

    combine: Literal["each", "probabilities", "logits", "weighted", "best"] = "each"
    """"each": the average of one term per teacher; a teacher without outputs for a row adds nothing there. The others
    combine the teachers of a row into one prediction: the mean of their probabilities, the mean of their logits or that
    of their probabilities with `teacher_weights`, or in each labelled row the teacher with the lowest cross-entropy (an
    unlabelled row uses the mean of probabilities)."""
    teacher_weights: Mapping[str, float] = Field(default_factory=dict)
    """For "weighted" and "logits", by teacher; one that is not listed has weight 1. The weights are scaled to sum 1."""
    standardise: bool = False
    """Replace each row's logits by z-scores first, for student and teachers (Sun et al., CVPR 2024)."""

    @field_validator("teacher_weights")
    @classmethod
    def _not_negative(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        wrong = sorted(name for name, weight in value.items() if not weight >= 0)
        if wrong:
            raise ValueError(f"weights of teachers are 0 or more; {wrong} are not")
        return value

    def check(
        self, student: OutputSpec, teachers: Mapping[str, OutputSpec], *, dense: bool = True, fewest: int = 2
    ) -> None:
        """Refuse networks whose logits cannot be compared; `dense=False` refuses maps of logits too.

        `fewest` is the smallest number of classes.

        Raises:
            ApplicabilityError: no teacher, no logits, different shapes (names the network), or too few classes.
            SettingError: `teacher_weights` name an unknown teacher, or all weights are 0.
        """
        require_same_logits(self.name, student, teachers, fewest)
        if self.standardise and student.classes == 2:
            raise ApplicabilityError(
                f"{self.name} with standardise: the z-scores of 2 logits are always -0.71 and 0.71, so a teacher's "
                "confidence is lost and gives no gradient; with 2 classes set standardise to false, or take a method "
                f"that compares features ({', '.join(ON_FEATURES)})"
            )
        if not dense and student.logits is not None and len(student.logits) > 1:
            raise ApplicabilityError(
                f"{self.name} compares one prediction for each row, and here a row has {student.logits[1:]} of them "
                "(dense labels); take kd, fitnets, mgdfr or c2kd, which have a form for dense labels"
            )
        for name in self.teacher_weights:
            if name not in teachers:
                raise SettingError(f"{self.name}: teacher_weights: no teacher {name!r}; {nearest(name, teachers)}")
        if self.combine in WEIGHTED and not any(self.teacher_weights.get(name, 1.0) for name in teachers):
            raise SettingError(f"{self.name}: teacher_weights are 0 for each teacher; set at least one above 0")


def needs_logits(teachers: Iterable[str]) -> dict[str, frozenset[Signal]]:
    """What `Method.needs` returns for a method that reads only the logits of the student and of these teachers."""
    return dict.fromkeys((STUDENT, *teachers), frozenset({Signal.LOGITS}))


@dataclass(frozen=True, slots=True)
class TeacherPrediction:
    """The prediction of one teacher, or of several combined, on the rows of the student's outputs.

    Shapes: K teachers take part, R rows, C classes.
    """

    name: str
    logits: Tensor
    """Logits of the teachers that take part, (K, R, C, ...)."""
    log_weights: Tensor
    """Log weight of each teacher in the mixture of probabilities, (K, R)."""
    weight: Tensor
    """Weight of each row (R,): 1 if a teacher has outputs for it, else 0."""
    share: float
    """Share of the distillation loss: 1 / number of predictions."""
    seen: Tensor | None
    """The rows for which a teacher has outputs (R,); None: all rows."""

    def at(self, temperature: float) -> Tensor:
        """Logits whose softmax at this temperature is the prediction (R, C, ...)."""
        if len(self.logits) == 1:
            return self.logits[0]
        logs = torch.stack([log_probabilities(logits, temperature) for logits in self.logits])
        weights = self.log_weights.reshape(*self.log_weights.shape, *[1] * (logs.ndim - 2))
        return temperature * torch.logsumexp(logs + weights, dim=0)

    def at_labels(self, temperature: float) -> Tensor:
        """Logits whose sigmoid at this temperature is the prediction of each label (R, C)."""
        if len(self.logits) == 1:
            return self.logits[0]
        weights = self.log_weights.exp().unsqueeze(2)
        return temperature * torch.logit((self.logits.div(temperature).sigmoid() * weights).sum(0), eps=1e-6)

    def mean(self) -> Tensor:
        """The mean of the predicted numbers (R, C)."""
        return self.logits[0] if len(self.logits) == 1 else (self.logits * self.log_weights.exp().unsqueeze(2)).sum(0)

    def term(self, loss: Tensor) -> Term:
        """A loss as a term: one value for each row (R,), zero in rows without a teacher's outputs; or a scalar."""
        if loss.ndim == 0:
            return Term(loss, self.share)
        return Term(loss.where(self.weight > 0, 0.0) * self.weight, self.share)


@torch.no_grad()
def teacher_predictions(
    config: LogitConfig, student: Outputs, batch: Batch, teachers: Mapping[str, Teacher]
) -> list[TeacherPrediction]:
    """Run the teachers without gradient, and combine their logits according to the settings."""
    outputs = {name: teacher(batch) for name, teacher in teachers.items()}
    spreads = [spread(output, len(batch)) for output in outputs.values()]
    raw = torch.stack([student.of(logits) for logits, _ in spreads])
    saw = torch.stack([student.of(seen) for _, seen in spreads])
    partly = any(output.rows is not None for output in outputs.values())
    logits = torch.stack([standardised(rows) for rows in raw]) if config.standardise else raw
    if config.combine == "each":
        weight = saw.to(logits.dtype)
        alone = torch.zeros_like(weight[:1])
        return [
            TeacherPrediction(name, logits[k : k + 1], alone, weight[k], 1 / len(outputs), saw[k] if partly else None)
            for k, name in enumerate(outputs)
        ]
    weights = _weights(config, student, batch, teachers, raw, saw)
    if config.combine == "logits":
        logits = (logits * weights.reshape(*weights.shape, *[1] * (logits.ndim - 2))).sum(0, keepdim=True)
    seen = saw.any(0)
    weight = seen.to(logits.dtype)
    return [TeacherPrediction(config.combine, logits, weights.log(), weight, 1.0, seen if partly else None)]


def student_logits(config: LogitConfig, student: Outputs) -> Tensor:
    """The student's logits for the comparison: z-scores if `standardise` is set."""
    logits = student.need(Signal.LOGITS)
    return standardised(logits) if config.standardise else logits


def _weights(
    config: LogitConfig, student: Outputs, batch: Batch, teachers: Mapping[str, Teacher], logits: Tensor, saw: Tensor
) -> Tensor:
    """The weight of each teacher in each row (K, R); the sum is 1, also in rows without any teacher's outputs."""
    by_teacher = [config.teacher_weights.get(name, 1.0) if config.combine in WEIGHTED else 1.0 for name in teachers]
    weights = logits.new_tensor(by_teacher).unsqueeze(1) * saw
    # If all teachers of a row have weight 0, they count equally; in a row without teachers the result is unused.
    for instead in (saw.to(weights.dtype), torch.ones_like(weights)):
        weights = torch.where(weights.sum(0) > 0, weights, instead)
    weights = weights / weights.sum(0)
    if config.combine != "best":
        return weights
    errors, labelled = [], []
    for prediction, teacher in zip(logits, teachers.values(), strict=True):
        teacher_batch = teacher.sees(batch)
        assert teacher_batch.targets is not None
        errors.append(task_loss(batch.task, prediction, student.of(teacher_batch.targets)))
        labelled.append(student.of(teacher_batch.student_rows()))
    best = torch.where(saw, torch.stack(errors), torch.inf).argmin(0)
    one_hot = torch.zeros_like(weights).scatter(0, best.unsqueeze(0), 1.0)
    return torch.where(torch.stack(labelled).all(0) & saw.any(0), one_hot, weights)


def seen_everywhere(progress: Progress, prediction: TeacherPrediction, values: Sequence[Tensor]) -> list[Tensor]:
    """The values of all ranks' rows that have a prediction, for losses that compare rows."""
    return [progress.gather(value if prediction.seen is None else value[prediction.seen]) for value in values]


def student_targets(student: Outputs, batch: Batch) -> Tensor:
    """Targets of the student's rows; `MISSING_TARGET` where the target is hidden."""
    assert batch.targets is not None
    targets = student.of(batch.targets)
    known = student.of(batch.student_rows())
    return torch.where(known.view(-1, *[1] * (targets.ndim - 1)), targets, MISSING_TARGET)
