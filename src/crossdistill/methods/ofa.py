"""One-for-all: every stage of the student predicts what the teachers do, sharpened (Hao et al., NeurIPS 2023)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.errors import ApplicabilityError
from crossdistill.losses.ofa import ofa
from crossdistill.losses.standardise import standardised
from crossdistill.method import STUDENT, ActsOn, DataSpec, Method, module_key
from crossdistill.methods.feature_method import chosen
from crossdistill.methods.logit_method import Lesson, LogitConfig, LogitMethod, Pupil
from crossdistill.methods.loss_weights import Mixed
from crossdistill.nets.projector import logit_projector
from crossdistill.outputs import OutputSpec, Signal


class OFA(Mixed, LogitConfig):
    """`(1 - a) · CE + a · (Σ over stages + the student's own logits)`, by default at every tap of the student.

    MST-Distill's released code is `stages="mean"`, `final_epsilon=None`. In a row without a label the target gets no
    bonus.
    """

    acts_on: ClassVar[ActsOn | None] = "student's layers"
    name: Literal["ofa"] = "ofa"
    taps: tuple[str, ...] | None = None
    """Stages of the student; None: every tap that is not its logits."""
    epsilon: float = Field(1.1, gt=0)
    """Dimensionless: above 1, the target counts for more than the teacher says."""
    final_epsilon: float | None = Field(1.0, gt=0)
    """The same for the student's own logits; None: they get no such term."""
    temperature: float = Field(1.0, gt=0)
    """Dimensionless."""
    stages: Literal["sum", "mean"] = "sum"

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """A projector to logits for each stage.

        Raises:
            ApplicabilityError: the student shows no tap besides its logits; or dense logits.
        """
        self.check(student, teachers, dense=False)
        taps = self.taps if self.taps is not None else [signal.tap for signal in chosen("all", student)]
        shapes = {tap: student.feature(tap, "the student") for tap in taps}
        if not shapes:
            raise ApplicabilityError("ofa needs one stage of the student at least; it shows no tap besides its logits")
        return _OFA(self, shapes, student.classes, teachers, data.labelled_fraction)


class _OFA(LogitMethod):
    # Its projectors normalise over rows.
    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        config: OFA,
        shapes: Mapping[str, tuple[int, ...]],
        classes: int,
        teachers: Iterable[str],
        labelled_fraction: float,
    ) -> None:
        super().__init__(config, teachers, labelled_fraction)
        self.taps = tuple(shapes)
        self.projectors = nn.ModuleDict({module_key(tap): logit_projector(s, classes) for tap, s in shapes.items()})

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return {**super().needs(), STUDENT: frozenset({Signal.LOGITS, *map(Signal.feature, self.taps)})}

    def compare(self, pupil: Pupil, lesson: Lesson) -> Mapping[str, Tensor]:
        config = self.config
        teacher = lesson.at(config.temperature)
        terms = {}
        for tap in self.taps:
            logits = self.projectors[module_key(tap)](pupil.outputs.need(Signal.feature(tap)), pupil.progress.gather)
            logits = standardised(logits) if config.standardise else logits
            terms[f"ofa-{tap}"] = ofa(logits, teacher, pupil.targets, config.epsilon, config.temperature)
        if config.stages == "mean":
            terms = {"ofa": torch.stack(list(terms.values())).mean(0)}
        if config.final_epsilon is not None:
            terms["final"] = ofa(pupil.logits, teacher, pupil.targets, config.final_epsilon, config.temperature)
        return terms
