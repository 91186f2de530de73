"""Knowledge distillation: the student's softened prediction is pulled to the teachers' (Hinton et al., 2015)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.kl import distillation_kl
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.outputs import OutputSpec, Want, aligned
from crossdistill.teacher import Teacher


class KD(MethodConfig):
    """`(1 - a) · CE + a · T² · KL(teacher ‖ student)`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its rivals: T = 4, a from 0.5, halved every 30 epochs.
    With several teachers, the divergences to them are averaged.
    """

    name: Literal["kd"] = "kd"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless; softens both predictions."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of distillation at the start; the task has the rest."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """In epochs; None keeps `alpha` constant."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes."""
        require_same_logits(self.name, student, teachers)
        return _KD(self, tuple(teachers), data.labelled_fraction)

    def alpha_at(self, epoch: int) -> float:
        """Weight of distillation in an epoch, counted from 0."""
        return self.alpha * (self.decay ** (epoch // self.decay_every) if self.decay_every else 1.0)


class _KD(Method):
    def __init__(self, config: KD, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Want]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Want.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        alpha = self.config.alpha_at(progress.epoch)
        terms = {"task": task_term(outputs, batch, fraction=self.labelled_fraction, weight=1 - alpha)}
        for name in self.teachers:
            mine, theirs, _ = aligned(outputs, teachers[name](batch))
            rows = distillation_kl(mine, theirs.detach(), self.config.temperature)
            terms[f"kd/{name}"] = Term(rows, alpha / len(self.teachers))
        return Step(terms, outputs)


def require_same_logits(method: str, student: OutputSpec, teachers: Mapping[str, OutputSpec]) -> None:
    """Refuse to distil logits where there are none, or over other classes.

    Raises:
        ApplicabilityError: no teacher, no logits, or shapes that differ; says whose.
    """
    if not teachers:
        raise ApplicabilityError(f"{method} needs at least one teacher; this stage has none")
    if student.logits is None:
        raise ApplicabilityError(f"{method} distils logits, and the student gives none")
    for name, spec in teachers.items():
        if spec.logits != student.logits:
            raise ApplicabilityError(
                f"{method}: teacher {name!r} gives logits of shape {spec.logits}, the student {student.logits} "
                "(classes first, without the batch); they have to be the same"
            )
