"""The contract can be broken: for every clause there is a method here that breaks it, and is caught by that clause."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill import Batch, Live, Outputs, OutputSpec, Signal, Teacher
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.outputs import spread
from crossdistill.testing import CLAUSES, check_method, check_ranks, toy_dataset, toy_network
from crossdistill.testing.contract import hold
from crossdistill.testing.rehearsal import Contract


class Honest(Method):
    """Cross-entropy, and the squared distance to the mean of the teachers' logits."""

    def __init__(self, teachers: tuple[str, ...], classes: int) -> None:
        super().__init__()
        self.teachers = teachers
        self.scale = nn.Parameter(torch.ones(classes))

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Signal.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        terms = {"task": task_term(outputs, batch)}
        for name in self.teachers:
            given = teachers[name](batch)
            mine, theirs = self.on_both(outputs, given, len(batch))
            terms[name] = Term((self.scale * mine - theirs.detach()).square().sum(1), 0.1)
        return Step(terms | self.extra(batch, outputs, teachers), outputs)

    def on_both(self, student: Outputs, teacher: Outputs, rows: int) -> tuple[Tensor, Tensor]:
        seen = [torch.arange(rows) if one.rows is None else one.rows for one in (student, teacher)]
        mine = student.need(Signal.LOGITS)[torch.isin(seen[0], seen[1])]
        return mine, teacher.need(Signal.LOGITS)[torch.isin(seen[1], seen[0])]

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        return {}


class Settings(MethodConfig):
    name: Literal["honest"] = "honest"
    kind: str = "Honest"

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        return globals()[self.kind](tuple(teachers), student.classes)


class Rises(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        value = task_term(student, batch).value
        return {"rises": Term(2 * value.detach() - value, 2.0)}


class MovesTeacher(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        teacher = next(iter(teachers.values()))
        with torch.no_grad():
            next(teacher.network.parameters()).mul_(1.01)
        return {}


class TrainsTeacher(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        teacher = next(iter(teachers.values()))
        teacher.network.train()
        return {}


class KeepsTeacher(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        self.memory = {"last": (next(iter(teachers.values())),)}
        return {}


class KeepsWeights(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        teacher = next(iter(teachers.values()))
        self.borrowed = [next(teacher.network.parameters())]
        return {}


class ReadsUndeclared(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        return {"embedding": Term(student.need(Signal.EMBEDDING).square().sum(1))}


class PeeksUndeclared(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        there = student.embedding is not None
        return {"peek": Term(student.need(Signal.LOGITS).square().sum(1) * (2.0 if there else 1.0))}


class TimesZero(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        value = batch.read("second")
        there = batch.present.get("second", torch.ones(len(batch), dtype=torch.bool))
        return {"energy": Term(value.flatten(1).mean(1) * there)}


class ReadsAbsent(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        value = batch.read("second")
        weight = value.nan_to_num(100.0).flatten(1).mean(1)
        return {"energy": Term(student.of(weight) * student.need(Signal.LOGITS).square().sum(1), 0.01)}


class ReadsHiddenLabels(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        return {"more": task_term(student, batch, hidden=False)}


class NeedsLabels(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        assert batch.targets is not None
        return {"more": Term(student.need(Signal.LOGITS).gather(1, student.of(batch.targets)[:, None])[:, 0])}


class ComparesRows(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        logits = student.need(Signal.LOGITS)
        return {"spread": Term((logits - logits.mean(0)).square().sum(1))}


class MovesInForward(Honest):
    def __init__(self, teachers: tuple[str, ...], classes: int) -> None:
        super().__init__(teachers, classes)
        self.register_buffer("centre", torch.zeros(classes))

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        logits = student.need(Signal.LOGITS)
        with torch.no_grad():
            self.centre += 0.1 * logits.sum(0)
        return {}


class CountsInForward(Honest):
    calls = 0

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        self.calls += 1
        return {"calls": Term(student.need(Signal.LOGITS).square().sum(1) * self.calls)}


class NeedsTwo(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        second = teachers[self.teachers[1]](batch)
        return {"second": Term(second.need(Signal.LOGITS).square().sum(1))}


class IgnoresOne(Honest):
    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        step = super().forward(batch, student, teachers, progress)
        return Step({name: term for name, term in step.terms.items() if name != "teacher-3"}, step.student)


class FillsAbsent(Honest):
    """Teachers' outputs with zeros in rows that they lack: the student learns these zeros."""

    def on_both(self, student: Outputs, teacher: Outputs, rows: int) -> tuple[Tensor, Tensor]:
        return student.need(Signal.LOGITS), student.of(spread(teacher, rows)[0])


class DividesByRows(Honest):
    """A mean over a teacher's rows, which is NaN where there are none."""

    batch_relational: ClassVar[bool] = True

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        mine, _ = self.on_both(student, teachers[self.teachers[-1]](batch), len(batch))
        return {"mean": Term(mine.square().mean())}


class CountsRows(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        logits = student.need(Signal.LOGITS)
        return {"place": Term(logits.square().sum(1) * torch.arange(len(logits)))}


class Forgets(Honest):
    steps = 0

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        return {"more": Term(student.need(Signal.LOGITS).square().sum(1) * self.steps)}

    def after_step(self, batch: Batch, step: Step) -> None:
        self.steps += 1


class JudgesOthers(Honest):
    def parts(self) -> Mapping[str, nn.Module]:
        return {"scale": nn.Identity()}


class JudgesBatches(Honest):
    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        return {name: value.mean() for name, value in super().validate(batch, student, teachers).items()}


class ReadsInputs(Honest):
    """A modality that only a teacher reads, which nobody fetches when that teacher is banked."""

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        return {"more": Term(student.of(torch.as_tensor(batch.inputs["third"]).nan_to_num().sum(1)) * self.scale[0])}


class TellsSourcesApart(Honest):
    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        live = sum(isinstance(one, Live) for one in teachers.values())
        return {"more": Term(student.need(Signal.LOGITS).sum(1) * live)}


BROKEN: list[tuple[type[Honest], str, tuple[str, ...]]] = [
    (Rises, "the loss is finite and falls", ("12 steps",)),
    (MovesTeacher, "what does not train stays", ("moved",)),
    (TrainsTeacher, "what does not train stays", ()),
    (KeepsTeacher, "owns neither student nor teachers", ("'teacher-0'", "memory")),
    (KeepsWeights, "owns neither student nor teachers", ("'teacher-0'", "borrowed")),
    (ReadsUndeclared, "names every signal that is read", ("embedding",)),
    (PeeksUndeclared, "names every signal that is read", ("'peek'",)),
    (TimesZero, "an absent modality is never read", ("NaN or Inf",)),
    (ReadsAbsent, "an absent modality is never read", ("absent rows",)),
    (ReadsHiddenLabels, "rows may have no label", ("hidden", "student")),
    (NeedsLabels, "rows may have no label", ()),
    (ComparesRows, "micro-batches are the batch", ("micro-batches",)),
    (MovesInForward, "state moves in after_step alone", ("'centre'",)),
    (CountsInForward, "state moves in after_step alone", ("'calls'",)),
    (NeedsTwo, "it takes one teacher and three, or refuses", ("tuple index out of range",)),
    (IgnoresOne, "of several teachers, each takes part", ("'teacher-3'",)),
    (FillsAbsent, "of several teachers, each takes part", ("'teacher-1'", "wanted 0")),
    (DividesByRows, "of several teachers, each takes part", ("'mean'", "NaN or Inf")),
    (CountsRows, "the order of rows does not matter", ("'place'",)),
    (Forgets, "its state comes back from a file", ("'more'",)),
    (JudgesOthers, "it judges what is selected", ("student", "'scale'")),
    (JudgesBatches, "it judges what is selected", ("row",)),
    (ReadsInputs, "what a bank gives is what a live source gives", ("KeyError: 'third'",)),
    (TellsSourcesApart, "what a bank gives is what a live source gives", ("banks", "'more'")),
]


def test_every_clause_is_broken_by_somebody() -> None:
    assert {next(clause for clause in CLAUSES if words in clause) for _, words, _ in BROKEN} == set(CLAUSES)


def test_an_honest_method_keeps_the_contract() -> None:
    check_method(Settings())


@pytest.mark.parametrize(("kind", "words", "facts"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_clause_is_caught(kind: type[Honest], words: str, facts: tuple[str, ...]) -> None:
    clause = next(clause for clause in CLAUSES if words in clause)
    with raises(AssertionError, *facts) as caught:
        held(kind, clause)
    assert f"honest breaks the contract: {clause}." in str(caught.value)


def held(kind: type[Honest], clause: str) -> None:
    """One clause alone, through the same door as all of them."""
    hold(Contract(Settings(kind=kind.__name__), toy_dataset(("first", "second", "third"))), clause, CLAUSES[clause])


def test_a_method_that_refuses_every_number_of_teachers_is_told_apart() -> None:
    class Refuses(Settings):
        def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
            raise ApplicabilityError("never")

    with raises(AssertionError, "one", "several", "never"):
        check_method(Refuses())


def test_networks_and_data_of_your_own() -> None:
    data = toy_dataset({"left": (3,), "right": (2, 2)}, classes=3)
    shapes = {"left": (3,), "right": (2, 2)}
    student = toy_network(("left",), shapes=shapes, classes=3)
    teachers = {"both": toy_network(("right", "left"), shapes=shapes, classes=3, seed=1)}
    before = [parameter.clone() for parameter in student.parameters()]
    check_method(Settings(), student=student, teachers=teachers, dataset=data)
    assert all(torch.equal(one, two) for one, two in zip(before, student.parameters(), strict=True)), "copies train"


def test_networks_of_your_own_come_together() -> None:
    with raises(SettingError, "together"):
        check_method(Settings(), student=toy_network())


class SumsOverRanks(Honest):
    """Compares rows of its own rank alone, which is another number where there are several."""

    batch_relational: ClassVar[bool] = True

    def extra(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> dict[str, Term]:
        logits = student.need(Signal.LOGITS)
        return {"spread": Term((logits - logits.mean(0)).square().sum() / max(1, len(logits)))}


@pytest.mark.slow
def test_ranks_that_do_not_gather_are_caught() -> None:
    with raises(AssertionError, "2 processes", "rank"):
        check_ranks(Settings(kind="SumsOverRanks"))
