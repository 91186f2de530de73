"""A student and teachers without networks, and one step of a method over them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from builders import rows_of
from torch import Tensor

from crossdistill import Batch, Outputs, OutputSpec, Signal, Teacher
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step
from crossdistill.testing import FakeTeacher

ROWS, CLASSES = 8, 4
SPEC = OutputSpec(logits=(4,), features={"early": (3, 6, 4), "late": (5, 3, 3), "fc": (7,)})
OTHER = OutputSpec(logits=(4,), features={"first": (2, 5, 5), "second": (6, 2, 2), "end": (9,)})
"""Another architecture: other channels, other sizes."""
DENSE = OutputSpec(logits=(4, 6, 4), features={"early": (3, 6, 4), "late": (5, 3, 3)})


def data_of(**changes: Any) -> DataSpec:
    given = {"rows": ROWS, "classes": CLASSES, "targets": torch.arange(ROWS) % CLASSES, "ids": torch.arange(ROWS)}
    return DataSpec(**(given | changes))


class Cast:
    """A method built for stand-ins, which answer what it needs."""

    def __init__(
        self,
        config: MethodConfig,
        teachers: Mapping[str, OutputSpec] | None = None,
        student: OutputSpec = SPEC,
        data: DataSpec | None = None,
        absent: Iterable[str] = (),
    ) -> None:
        specs = {"mm": OTHER} if teachers is None else dict(teachers)
        torch.manual_seed(0)
        self.method: Method = config.build(student, specs, data_of() if data is None else data)
        needs = self.method.needs()
        self.student = FakeTeacher("student", student).select(needs[STUDENT])
        fakes = {name: FakeTeacher(name, spec, (name,) if name in absent else ()) for name, spec in specs.items()}
        self.teachers: dict[str, Teacher] = {name: fake.select(needs[name]) for name, fake in fakes.items()}

    def step(self, batch: Batch | None = None, progress: Progress | None = None) -> Step:
        batch = rows_of() if batch is None else batch
        return self.method(batch, self.student, self.teachers, progress or Progress())

    def weights(self, **progress: int) -> dict[str, float]:
        """What each term weighs."""
        terms = self.step(progress=Progress(**progress)).terms
        return {name: float(term.weight) for name, term in terms.items()}

    def value(self, name: str, batch: Batch | None = None) -> Tensor:
        return self.step(batch).terms[name].value

    def outputs(self, name: str, batch: Batch | None = None) -> Outputs:
        source = self.student if name == "student" else self.teachers[name]
        return source(rows_of() if batch is None else batch)

    def features(self, name: str, *taps: str) -> list[Tensor]:
        return [self.outputs(name).need(Signal.feature(tap)) for tap in taps]

    def logits(self, name: str) -> Tensor:
        return self.outputs(name).need(Signal.LOGITS)
