"""How labels and teachers share a loss: two published conventions, and the step that both of them make."""

import abc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.method import STUDENT, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.outputs import Outputs, Signal
from crossdistill.teacher import Teacher

Signals = tuple[Mapping[str, Term], Mapping[str, Tensor]]
"""Terms of distillation before the protocol's weight, and what `after_step` will need."""


class Shares(MethodConfig, abc.ABC):
    """A method's settings that include what task and distillation weigh in each epoch."""

    @abc.abstractmethod
    def shares_at(self, epoch: int) -> tuple[float, float]:
        """Weights of the task and of distillation in an epoch, counted from 0."""


class Mixed(Shares):
    """`(1 - a) · CE + a · loss`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its rivals: a from 0.5, halved every 30 epochs.
    """

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of distillation at the start; the task has the rest."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """In epochs; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead: (0.1, 0.9) is mdistiller's for KD."""

    def alpha_at(self, epoch: int) -> float:
        """Weight of distillation in an epoch, counted from 0."""
        return self.alpha * (self.decay ** (epoch // self.decay_every) if self.decay_every else 1.0)

    def shares_at(self, epoch: int) -> tuple[float, float]:
        """1 - a and a, or the fixed weights."""
        return self.fixed if self.fixed is not None else (1 - self.alpha_at(epoch), self.alpha_at(epoch))


class Weighted(Shares):
    """`weight_task · CE + weight · loss`, where `weight` grows over the first epochs: mdistiller's protocol."""

    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    """Of distillation, after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """In epochs: in epoch e, counted from 0, distillation has min((e + 1) / warm_up, 1) of its weight."""

    def shares_at(self, epoch: int) -> tuple[float, float]:
        """The task's constant weight, and what distillation has by now."""
        return self.weight_task, self.weight * (min((epoch + 1) / self.warm_up, 1.0) if self.warm_up else 1.0)


class Taught(Method):
    """A method with one student, teachers that do not train, and a loss in which both have their share."""

    def __init__(self, config: Shares, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config: Any = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        """Logits of everybody."""
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Signal.LOGITS}))

    @abc.abstractmethod
    def signals(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher], progress: Progress) -> Signals:
        """What the teachers say of this batch."""

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """Cross-entropy on labelled rows, and the teachers' terms, each with its share."""
        outputs = student(batch)
        task, distil = self.config.shares_at(progress.epoch)
        terms = {"task": task_term(outputs, batch, fraction=self.labelled_fraction, weight=task)}
        signals, stash = self.signals(batch, outputs, teachers, progress)
        terms |= {name: replace(term, weight=term.weight * distil) for name, term in signals.items()}
        return Step(terms, outputs, stash=stash)
