"""Labels alone: the student without any teacher, and how teachers themselves are trained."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from crossdistill.batch import Batch
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, task_term
from crossdistill.outputs import OutputSpec, Want
from crossdistill.teacher import Teacher


class Supervised(MethodConfig):
    """Cross-entropy on labelled rows, which are drawn in as many steps as all rows would take."""

    name: Literal["supervised"] = "supervised"

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """A method that reads nothing but the learner's logits."""
        return _Supervised()


class _Supervised(Method):
    labelled_only: ClassVar[bool] = True

    def needs(self) -> Mapping[str, frozenset[Want]]:
        return {STUDENT: frozenset({Want.LOGITS})}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        return Step({"task": task_term(outputs, batch)}, outputs)
