"""DIST: correlation with the teachers' predictions, over classes and over rows (Huang et al., NeurIPS 2022)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from crossdistill.batch import Batch, Task
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.kl import log_probabilities
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.logit_method import (
    LogitConfig,
    needs_logits,
    seen_everywhere,
    student_logits,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class DIST(LogitConfig):
    """`CE + T² · (beta · d(a row's classes) + gamma · d(a class's rows))`, d = 1 - Pearson's correlation.

    arXiv 2205.10536; the defaults are those of the released code.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["dist"] = "dist"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    beta: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    """Dimensionless."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes, with one prediction per row.

        Raises:
            ApplicabilityError: only two classes, for which a row's correlation is always 1 or -1; or dense logits.
        """
        self.check(student, teachers, dense=False)
        if self.beta and student.classes == 2:
            raise ApplicabilityError(
                "dist: the correlation over a row's 2 classes is always 1 or -1 and has no gradient; with 2 classes "
                "set beta to 0, which keeps the correlation over rows, or take kd"
            )
        return _DIST(self, teachers, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _DIST(Method):
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "soft"})
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def __init__(self, config: DIST, teachers: Iterable[str], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        teachers = {name: teachers[name] for name in self.teachers}
        config = self.config
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        logits = student_logits(config, outputs)
        scale = config.temperature**2
        terms = {}
        for prediction in teacher_predictions(config, outputs, batch, teachers):
            mine = log_probabilities(logits, config.temperature).exp()
            theirs = log_probabilities(prediction.at(config.temperature), config.temperature).exp()
            all_mine, all_theirs = seen_everywhere(progress, prediction, [mine, theirs])
            by_class = unlikeness(all_mine.T, all_theirs.T).mean() if len(all_mine) else all_mine.sum()
            by_row = unlikeness(mine, theirs)
            terms[f"classes/{prediction.name}"] = prediction.term(config.beta * scale * by_row)
            terms[f"rows/{prediction.name}"] = prediction.term(config.gamma * scale * by_class)
        return weighted_step(config.loss_weights(), progress, outputs, task, terms)


def unlikeness(first: Float[Tensor, "N M"], second: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """1 - Pearson's correlation of each row with its counterpart, 0 to 2; 1 where one of them is constant."""
    mine, theirs = (side - side.mean(dim=1, keepdim=True) for side in (first, second))
    return 1 - functional.cosine_similarity(mine, theirs, dim=1, eps=1e-8)
