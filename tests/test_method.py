"""A method's step: how terms are reduced, whose labels count, and how settings become a method."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from builders import rows_of
from facts import raises, warned
from pydantic import ValidationError

from crossdistill import Outputs, OutputSpec, Signal, Teacher
from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.methods import KD, METHODS, Route, Specialise, Supervised, method_config
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.network import Network
from crossdistill.testing import FakeTeacher

SPEC = OutputSpec(logits=(4,), features={"fc": (12,)})
DATA = DataSpec(rows=8, classes=4)


def test_rows_are_added_up_and_divided_by_the_whole_step() -> None:
    value = torch.tensor([1.0, 2.0, 3.0])
    assert Term(value).reduced(6) == 1.0
    assert Term(value, share=0.5).reduced(6) == 2.0
    assert Term(value).reduced(6, parts=4) == 1.0, "rows of other parts are in the total already"
    assert Term(torch.tensor(6.0)).reduced(6, parts=4) == 1.5, "each part has the whole of a batch-level value"
    assert Term(torch.zeros(0)).reduced(6) == 0.0


def test_a_steps_loss_is_the_weighted_sum_of_its_terms() -> None:
    outputs = Outputs("student")
    terms = {"a": Term(torch.tensor([1.0, 3.0]), 2.0), "not_a_loss": Term(torch.tensor(5.0), torch.tensor(0.1))}
    assert Step(terms, outputs).loss(total_rows=4) == pytest.approx(2.0 + 0.5)


def test_the_task_obeys_the_labels_that_the_student_has() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    outputs = Outputs("student", logits=logits)
    targets = torch.tensor([0, 1, MISSING_TARGET, 2])
    batch = rows_of(4, targets=targets, labelled=torch.tensor([True, False, True, True]))
    plain = torch.nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    hidden = task_term(outputs, batch, fraction=0.5, weight=0.3)
    assert torch.allclose(hidden.value, plain * torch.tensor([1.0, 0, 0, 1]))
    assert (hidden.weight, hidden.group, hidden.share) == (0.3, "task", 0.5)
    everyone = task_term(outputs, batch, hidden=False)
    assert torch.allclose(everyone.value, plain * torch.tensor([1.0, 1, 0, 1]))
    hidden.value.sum().backward()
    assert logits.grad.abs().sum(1).bool().tolist() == [True, False, False, True]


def test_the_task_of_a_source_that_saw_some_rows() -> None:
    outputs = Outputs("student", logits=torch.zeros(2, 4), rows=torch.tensor([1, 3]))
    term = task_term(outputs, rows_of(4, labelled=torch.tensor([True, True, True, False])))
    assert term.value.tolist() == pytest.approx([torch.tensor(4.0).log().item(), 0.0])


def test_by_default_the_student_is_judged_with_every_target() -> None:
    method = Supervised().build(SPEC, {}, DATA)
    batch = rows_of(labelled=torch.zeros(8, dtype=torch.bool))
    student = FakeTeacher("image", SPEC)
    found = method.validate(batch, student, {})
    wanted = torch.nn.functional.cross_entropy(student(batch).need(Signal.LOGITS), batch.targets, reduction="none")
    assert set(found) == {STUDENT}
    assert torch.allclose(found[STUDENT], wanted)


def test_a_method_asks_for_what_it_needs_and_nothing_else() -> None:
    fakes = {name: FakeTeacher(name, SPEC) for name in ("a", "b", "c")}
    method = KD().build(SPEC, dict.fromkeys(fakes, SPEC), DATA)
    assert method.needs() == dict.fromkeys((STUDENT, "a", "b", "c"), frozenset({Signal.LOGITS}))
    step = method(rows_of(), FakeTeacher("student", SPEC), fakes, Progress())
    assert list(step.terms) == ["task", "kd/a", "kd/b", "kd/c"]
    assert [len(fake.record.ids) for fake in fakes.values()] == [1, 1, 1]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_distillation_from_several_teachers_is_their_mean(number: int) -> None:
    fakes = {f"t{i}": FakeTeacher(f"t{i}", SPEC) for i in range(number)}
    method = KD(alpha=0.8).build(SPEC, dict.fromkeys(fakes, SPEC), DATA)
    terms = method(rows_of(), FakeTeacher("student", SPEC), fakes, Progress()).terms
    assert sum(term.weight for name, term in terms.items() if name != "task") == pytest.approx(0.8)
    assert terms["task"].weight == pytest.approx(0.2)


def test_schedules_count_epochs_from_zero() -> None:
    weights = KD(alpha=0.5).loss_weights()
    assert [weights.at(epoch)[1] for epoch in (0, 29, 30, 59, 60)] == [0.5, 0.5, 0.25, 0.25, 0.125]
    assert KD(decay_every=None).loss_weights().at(1000)[1] == 0.5
    route = Route()
    assert [route.distil_at(epoch) for epoch in (0, 29, 30, 60)] == [1.0, 1.0, 0.5, 0.25]
    assert [route.balance_at(epoch) for epoch in (0, 9, 10, 20)] == pytest.approx([1.0, 1.0, 0.9, 0.81])
    released = Route(decay_after_first=True)
    assert [released.distil_at(epoch) for epoch in (0, 1, 30, 31)] == [1.0, 0.5, 0.5, 0.25]
    assert [released.balance_at(epoch) for epoch in (0, 1, 10, 11)] == pytest.approx([1.0, 0.9, 0.9, 0.81])


def test_routing_takes_teachers_that_saw_the_row() -> None:
    """An absent teacher is never chosen, and a row that nobody saw learns from labels alone."""
    there = {"a": [True, True, False, False], "b": [True, False, True, False]}
    fakes = {
        name: FakeTeacher(
            name, SPEC, (name,), given={Signal.LOGITS: torch.full((4, 4), torch.nan).index_fill_(0, seen, i)}
        )
        for i, (name, mask) in enumerate(there.items())
        for seen in [torch.tensor(mask).nonzero().flatten()]
    }
    batch = rows_of(4, present={name: torch.tensor(mask) for name, mask in there.items()})
    method = Route().build(SPEC, dict.fromkeys(fakes, SPEC), DATA)
    step = method(batch, FakeTeacher("student", SPEC), fakes, Progress())
    value = step.terms["distil"].value
    assert bool(value.isfinite().all())
    assert (value > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("student", "teachers", "facts"),
    [
        (SPEC, {}, ("kd", "one teacher")),
        (OutputSpec(embedding=(3,)), {"a": SPEC}, ("kd", "logits", "student")),
        (SPEC, {"a": SPEC, "b": OutputSpec(logits=(5,))}, ("'b'", "(5,)", "(4,)")),
        (SPEC, {"a": OutputSpec(embedding=(4,))}, ("'a'", None)),
    ],
)
def test_logits_that_do_not_fit_are_refused(
    student: OutputSpec, teachers: Mapping[str, OutputSpec], facts: tuple[object, ...]
) -> None:
    with raises(ApplicabilityError, *facts):
        require_same_logits("kd", student, teachers)


@pytest.mark.parametrize(
    ("config", "teachers", "facts"),
    [
        (Route(), 1, ("route", 1)),
        (Route(k=4), 3, ("route", 4, 3)),
        (Specialise(taps={"t9": ("fc",)}), 2, ("'t9'", "'t0', 't1'")),
    ],
)
def test_a_method_that_cannot_apply_says_why(config: MethodConfig, teachers: int, facts: tuple[object, ...]) -> None:
    with raises(ApplicabilityError, *facts):
        config.build(SPEC, {f"t{i}": SPEC for i in range(teachers)}, DATA)


def test_specialise_needs_taps() -> None:
    for taps in ({}, {"t0": ()}):
        with raises(SettingError, "layer"):
            Specialise(taps=taps).build(SPEC, {"t0": SPEC}, DATA)


def test_masks_are_named_after_their_teacher_and_tap_also_with_dots() -> None:
    spec = OutputSpec(logits=(4,), features={"block.1.fc": (12,), "fc": (12,)})
    method = Specialise(taps={"a": ("block.1.fc", "fc")}).build(SPEC, {"a": spec}, DATA)
    assert list(method.parts()) == ["a@block.1.fc", "a@fc"]
    assert method.needs()["a"] == {Signal.cut("block.1.fc"), Signal.cut("fc")}


@pytest.mark.parametrize("name", list(METHODS))
def test_settings_are_frozen_and_know_their_fields(name: str) -> None:
    kind = METHODS[name]
    config = kind.model_validate({"name": name} | ({"taps": {"a": ["fc"]}} if name == "specialise" else {}))
    assert config.name == name
    with raises(ValidationError, "frozen_instance"):
        config.name = "other"
    with raises(ValidationError, "extra_forbidden"):
        kind.model_validate({**config.model_dump(), "temprature": 3})


def test_a_method_comes_from_its_name_or_from_settings() -> None:
    assert method_config("kd") == KD()
    assert method_config({"name": "kd", "temperature": 2}) == KD(temperature=2.0)
    with raises(SettingError, "'kdd'", "'kd'"):
        method_config("kdd")
    with raises(SettingError, "'name'"):
        method_config({"temperature": 2})


def test_old_names_of_methods_that_make_teachers_work_with_a_warning() -> None:
    def same(self: Method, teachers: Mapping[str, Teacher]) -> Mapping[str, Teacher]:
        return teachers

    with warned(DeprecationWarning, "next_teachers"):
        method = type("Old", (Method,), {"graduates": same})
    assert method.next_teachers is same
    with warned(DeprecationWarning, "makes_next_teachers"):

        class Old(KD):
            graduating: ClassVar[bool] = True

    assert Old.makes_next_teachers
    with warned(DeprecationWarning, "choose_layers"):

        class Chooses(KD):
            def settled(
                self, networks: Mapping[str, Network], batch: Batch
            ) -> tuple[MethodConfig, Mapping[str, Sequence[str]]]:
                return self, {"t": ("fc1",)}

    assert Chooses().choose_layers({}, Batch({}, torch.arange(1)))[1] == {"t": ("fc1",)}
    with warned(DeprecationWarning, "choose_layers"):
        assert KD().settled({}, Batch({}, torch.arange(1)))[1] == {}
    assert not KD.makes_next_teachers
