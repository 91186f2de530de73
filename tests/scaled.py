"""A method of a test's own: cross-entropy of scaled logits, which may do something wicked on the way."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossdistill import Batch, OutputSpec, Signal, Teacher
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term


class Scaled(MethodConfig):
    """Cross-entropy of scaled logits, for everybody who trains; may do something wicked on the way."""

    name: str = "scaled"
    wicked: str = ""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        return _Scaled(self, tuple(teachers))


class _Scaled(Method):
    def __init__(self, config: Scaled, teachers: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.teachers = config, teachers
        self.scale = nn.Parameter(torch.ones(()))

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Signal.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        terms = {"task": task_term(outputs, batch), "scale": Term(outputs.need(Signal.LOGITS).sum(1) * self.scale, 0.1)}
        for name in self.teachers:
            terms[f"task/{name}"] = task_term(teachers[name](batch), batch, hidden=False)
        if torch.is_grad_enabled():
            self._wicked(teachers, progress)
        if self.config.wicked == "nan" and progress.step == 2:
            terms["nan"] = Term(outputs.need(Signal.LOGITS).sum(1) * torch.nan)
        return Step(terms, outputs)

    def _wicked(self, teachers: Mapping[str, Teacher], progress: Progress) -> None:
        teacher = next(iter(teachers.values()))
        with torch.no_grad():
            if self.config.wicked == "moves a weight":
                next(teacher.network.parameters()).add_(1e-6)
            if self.config.wicked == "moves a buffer":
                teacher.network.module.normalise.running_mean.add_(1e-6)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        if self.config.wicked.startswith("judges "):
            values = json.loads(self.config.wicked.removeprefix("judges "))
            # A few rows are looked at before training, and to find how many go together.
            self.calls = getattr(self, "calls", -1) + (len(batch) > 4)
            return {STUDENT: torch.full((len(batch),), values[max(0, self.calls)])}
        return super().validate(batch, student, teachers)
