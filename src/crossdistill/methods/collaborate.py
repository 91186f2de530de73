"""MST-Distill's first stage, and mutual learning: all members train together (Li et al., 2025, Eq. 1-4)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch
from crossdistill.losses.collaborative import collaborative_terms
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.methods.kd import require_same_logits
from crossdistill.outputs import OutputSpec, Want, spread
from crossdistill.teacher import Teacher


class Collaborate(MethodConfig):
    """Cross-entropy of every member, and the divergence of every member from every other.

    Joint by default, as published: both sides of a divergence receive its gradient. `detach=True` stops the
    gradient at the side that teaches, which is mutual learning (Zhang et al., 2018).
    """

    name: Literal["collaborate"] = "collaborate"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T², as the released code does (the paper writes none)."""
    detach: bool = False
    weight_task: float = Field(1.0, ge=0)
    weight_distil: float = Field(1.0, ge=0)

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all members have logits over the same classes."""
        require_same_logits(self.name, student, teachers)
        return _Collaborate(self, tuple(teachers), data.labelled_fraction)


class _Collaborate(Method):
    symmetric: ClassVar[bool] = True

    def __init__(self, config: Collaborate, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Want]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Want.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config = self.config
        # In the order of names, so that it does not matter to the last bit who of them is the student.
        members = dict(sorted({student.name: student, **{name: teachers[name] for name in self.teachers}}.items()))
        outputs = {name: member(batch) for name, member in members.items()}
        terms: dict[str, Term] = {}
        for name, member in members.items():
            hidden = name == student.name
            share = self.labelled_fraction if hidden else 1.0
            seen = batch if hidden else member.sees(batch)
            terms[f"task/{name}"] = task_term(
                outputs[name], seen, hidden=hidden, fraction=share, weight=config.weight_task
            )
        spreads = {name: spread(given, len(batch)) for name, given in outputs.items()}
        logits = {name: whole for name, (whole, _) in spreads.items()}
        pairs = collaborative_terms(logits, config.temperature, config.detach, config.squared)
        for (learner, guide), rows in pairs.items():
            both = spreads[learner][1] & spreads[guide][1]
            terms[f"kl/{guide}->{learner}"] = Term(rows.where(both, 0.0), config.weight_distil)
        return Step(terms, outputs[student.name])
