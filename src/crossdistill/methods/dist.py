"""DIST: predictions are to correlate with the teachers', over classes and over rows (Huang et al., NeurIPS 2022)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from crossdistill.errors import ApplicabilityError
from crossdistill.losses.kl import log_probabilities
from crossdistill.method import ActsOn, DataSpec, Method
from crossdistill.methods.logit_method import Lesson, LogitConfig, LogitMethod, Pupil, seen_everywhere
from crossdistill.methods.loss_weights import Weighted
from crossdistill.outputs import OutputSpec


class DIST(Weighted, LogitConfig):
    """`CE + T² · (beta · d(a row's classes) + gamma · d(a class's rows))`, d = 1 - Pearson's correlation.

    arXiv 2205.10536; the defaults are those of the released code.
    """

    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["dist"] = "dist"
    beta: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    """Dimensionless."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all have logits over the same classes, one prediction a row.

        Raises:
            ApplicabilityError: two classes, of which a row's correlation is always 1 or -1; or dense logits.
        """
        self.check(student, teachers, dense=False)
        if self.beta and student.classes == 2:
            raise ApplicabilityError(
                "dist: the correlation over a row's 2 classes is always 1 or -1 and has no gradient; with 2 classes "
                "set beta to 0, which keeps the correlation over rows, or take kd"
            )
        return _DIST(self, teachers, data.labelled_fraction)


class _DIST(LogitMethod):
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def compare(self, pupil: Pupil, lesson: Lesson) -> Mapping[str, Tensor]:
        config = self.config
        mine = log_probabilities(pupil.logits, config.temperature).exp()
        theirs = log_probabilities(lesson.at(config.temperature), config.temperature).exp()
        all_mine, all_theirs = seen_everywhere(pupil.progress, lesson, [mine, theirs])
        by_class = unlikeness(all_mine.T, all_theirs.T).mean() if len(all_mine) else all_mine.sum()
        scale = config.temperature**2
        return {"classes": config.beta * scale * unlikeness(mine, theirs), "rows": config.gamma * scale * by_class}


def unlikeness(one: Float[Tensor, "N M"], other: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """1 - Pearson's correlation of each row with its counterpart, 0 to 2; 1 where one of them is constant."""
    mine, theirs = (side - side.mean(dim=1, keepdim=True) for side in (one, other))
    return 1 - functional.cosine_similarity(mine, theirs, dim=1, eps=1e-8)
