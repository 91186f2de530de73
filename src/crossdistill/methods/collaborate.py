"""MST-Distill's first stage, and mutual learning: all members train together (Li et al., 2025, Eq. 1-4)."""

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch, Task
from crossdistill.losses.collaborative import collaborative_terms
from crossdistill.losses.squared_error import squared_error
from crossdistill.method import DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.methods.logit_method import needs_logits
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.outputs import OutputSpec, Signal, spread
from crossdistill.teacher import Teacher


class Collaborate(MethodConfig):
    """Cross-entropy of every member, and the divergence between every ordered pair of members.

    Joint by default, as published: both sides of a divergence receive its gradient. `detach=True` stops the
    gradient at the target side, which is mutual learning (Zhang et al., 2018). `distance="mse"` is MGDFR's first
    stage: the mean squared difference of the logits, once for each unordered pair of members.
    """

    trains_teachers: ClassVar[bool] = True

    name: Literal["collaborate"] = "collaborate"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T², as the released code does (the paper writes none)."""
    detach: bool = False
    averaged: bool = False
    """Divide a member's divergences by the number of other members, as the original mutual learning does."""
    distance: Literal["kl", "mse", "mse-released"] = "kl"
    """"mse" has no temperature and always gives gradients to both sides. "mse-released" is the released code's value
    for dense logits: it compares only the last class's map of the batch's first row."""
    weight_task: float = Field(1.0, ge=0)
    weight_distil: float = Field(1.0, ge=0)

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all members have logits over the same classes."""
        require_same_logits(self.name, student, teachers)
        return _Collaborate(self, tuple(teachers), data.labelled_fraction)


class _Collaborate(Method):
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "soft"})
    symmetric: ClassVar[bool] = True

    def __init__(self, config: Collaborate, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config = self.config
        # Sorted by name: sums are bit-identical whichever member is the student.
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
        spreads = {name: spread(output, len(batch)) for name, output in outputs.items()}
        logits = {name: whole for name, (whole, _) in spreads.items()}
        saw = {name: rows for name, (_, rows) in spreads.items()}
        terms |= self._divergences(logits, saw) if config.distance == "kl" else self._distances(logits, saw)
        return Step(terms, outputs[student.name])

    def _divergences(self, logits: Mapping[str, Tensor], saw: Mapping[str, Tensor]) -> dict[str, Term]:
        config = self.config
        weight = config.weight_distil / (len(self.teachers) if config.averaged else 1)
        pairs = collaborative_terms(logits, config.temperature, config.detach, config.squared)
        return {
            f"kl/{guide}->{learner}": Term(rows.where(saw[learner] & saw[guide], 0.0), weight)
            for (learner, guide), rows in pairs.items()
        }

    def _distances(self, logits: Mapping[str, Tensor], saw: Mapping[str, Tensor]) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for first, second in combinations(logits, 2):
            rows = squared_error(logits[first], logits[second])
            if self.config.distance == "mse-released" and logits[first].ndim > 2:
                last = squared_error(logits[first][:1, -1], logits[second][:1, -1])
                rows = torch.cat([last * len(rows), torch.zeros_like(rows[1:])])
            terms[f"mse/{first}-{second}"] = Term(rows.where(saw[first] & saw[second], 0.0), self.config.weight_distil)
        return terms
