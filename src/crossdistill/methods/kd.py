"""Knowledge distillation: the student's softened prediction is pulled to the teachers' (Hinton et al., 2015)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from crossdistill.losses.kl import distillation_kl
from crossdistill.method import ActsOn, DataSpec, Method
from crossdistill.methods.logit_method import Lesson, LogitConfig, LogitMethod, Pupil
from crossdistill.methods.loss_weights import Mixed
from crossdistill.outputs import OutputSpec


class KD(Mixed, LogitConfig):
    """`(1 - a) · CE + a · T² · KL(teacher ‖ student)`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its rivals: T = 4, a from 0.5, halved every 30 epochs. Dense
    logits are compared pixel by pixel.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["kd"] = "kd"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless; softens both predictions."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes."""
        self.check(student, teachers)
        return _KD(self, teachers, data.labelled_fraction)


class _KD(LogitMethod):
    def compare(self, pupil: Pupil, lesson: Lesson) -> Mapping[str, Tensor]:
        temperature = self.config.temperature
        return {"kd": distillation_kl(pupil.logits, lesson.at(temperature), temperature)}
