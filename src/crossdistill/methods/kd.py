"""Knowledge distillation: KL divergence between softened predictions (Hinton et al., 2015)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch
from crossdistill.losses.kl import distillation_kl
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import LogitConfig, needs_logits, student_logits, teacher_predictions
from crossdistill.methods.loss_weights import AlphaDecay, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class KD(LogitConfig):
    """`(1 - a) · CE + a · T² · KL(teacher ‖ student)`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its baselines: T = 4, a from 0.5, halved every 30 epochs. Dense
    logits are compared pixel by pixel.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["kd"] = "kd"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay; mdistiller uses (0.1, 0.9)."""
    temperature: float = Field(4.0, gt=0)
    """Temperature of both predictions (dimensionless)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes."""
        self.check(student, teachers)
        return _KD(self, teachers, data.labelled_fraction)

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _KD(Method):
    def __init__(self, config: KD, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """Runs student and teachers; returns the cross-entropy and the divergences, weighted for this epoch."""
        teachers = {name: teachers[name] for name in self.teachers}
        temperature = self.config.temperature
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        logits = student_logits(self.config, outputs)
        terms = {}
        for prediction in teacher_predictions(self.config, outputs, batch, teachers):
            divergence = distillation_kl(logits, prediction.at(temperature), temperature)
            terms[f"kd/{prediction.name}"] = prediction.term(divergence)
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
