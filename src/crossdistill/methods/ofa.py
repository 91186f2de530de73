"""One-for-all: sharpened distillation of logits at every stage of the student (Hao et al., NeurIPS 2023)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.ofa import ofa
from crossdistill.losses.standardise import standardised
from crossdistill.method import STUDENT, ActsOn, DataSpec, Method, Progress, Step, module_key, task_term
from crossdistill.methods.layer_choice import chosen
from crossdistill.methods.logit_method import (
    LogitConfig,
    needs_logits,
    student_logits,
    student_targets,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import AlphaDecay, weighted_step
from crossdistill.nets.projector import logit_projector
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class OFA(LogitConfig):
    """`(1 - a) · CE + a · (Σ over stages + the student's own logits)`, by default at every tap of the student.

    MST-Distill's released code is `stages="mean"`, `final_epsilon=None`. Rows without a label have no target class
    (y = 0 in the loss `ofa`).
    """

    acts_on: ClassVar[ActsOn | None] = "student's layers"
    name: Literal["ofa"] = "ofa"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay."""
    taps: tuple[str, ...] | None = None
    """Stages of the student; None: every tap that is not its logits."""
    epsilon: float = Field(1.1, gt=0)
    """Dimensionless; a value above 1 gives the target more weight than the teacher's probability does."""
    final_epsilon: float | None = Field(1.0, gt=0)
    """The same for the student's logits; None: no such term for them."""
    temperature: float = Field(1.0, gt=0)
    """Dimensionless."""
    stages: Literal["sum", "mean"] = "sum"

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a projector to logits for each stage.

        Raises:
            ApplicabilityError: the student has no tap besides its logits; or dense logits.
        """
        self.check(student, teachers, dense=False)
        taps = self.taps if self.taps is not None else [signal.tap for signal in chosen("all", student)]
        shapes = {tap: student.feature(tap, "the student") for tap in taps}
        if not shapes:
            raise ApplicabilityError(
                "ofa needs at least one stage of the student, which has no tap besides its logits; name layers with "
                "Network(taps=...)"
            )
        return _OFA(self, shapes, student.classes, teachers, data.labelled_fraction)

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _OFA(Method):
    # The projectors normalise over the batch.
    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        config: OFA,
        shapes: Mapping[str, tuple[int, ...]],
        classes: int,
        teachers: Iterable[str],
        labelled_fraction: float,
    ) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction
        self.taps = tuple(shapes)
        self.projectors = nn.ModuleDict({module_key(tap): logit_projector(s, classes) for tap, s in shapes.items()})

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return {**needs_logits(self.teachers), STUDENT: frozenset({Signal.LOGITS, *map(Signal.feature, self.taps)})}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        teachers = {name: teachers[name] for name in self.teachers}
        config = self.config
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        targets = student_targets(outputs, batch)
        terms = {}
        for prediction in teacher_predictions(config, outputs, batch, teachers):
            teacher = prediction.at(config.temperature)
            stages = {}
            for tap in self.taps:
                logits = self.projectors[module_key(tap)](outputs.need(Signal.feature(tap)), progress.gather)
                logits = standardised(logits) if config.standardise else logits
                stages[f"ofa-{tap}"] = ofa(logits, teacher, targets, config.epsilon, config.temperature)
            if config.stages == "mean":
                stages = {"ofa": torch.stack(list(stages.values())).mean(0)}
            if config.final_epsilon is not None:
                logits = student_logits(config, outputs)
                stages["final"] = ofa(logits, teacher, targets, config.final_epsilon, config.temperature)
            for stage, rows in stages.items():
                terms[f"{stage}/{prediction.name}"] = prediction.term(rows)
        return weighted_step(config.loss_weights(), progress, outputs, task, terms)
