"""Many teachers, one student: what each way of combining them makes of their predictions, row by row."""

from typing import Any

import pytest
import torch
from builders import rows_of
from facts import raises
from torch import Tensor

from crossdistill import DataSpec, Outputs, OutputSpec, Progress, Signal
from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.losses import standardised
from crossdistill.methods.kd import KD
from crossdistill.methods.logit_method import LogitConfig, student_targets, teacher_predictions
from crossdistill.teacher import Shuffled, Teacher
from crossdistill.testing import FakeTeacher

SPEC = OutputSpec(logits=(4,))
ROWS = 6


def batch_of(**changes: Any) -> Batch:
    return rows_of(ROWS, **changes)


def cast(number: int = 3, modalities: tuple[str, ...] = ()) -> dict[str, Teacher]:
    return {f"t{i}": FakeTeacher(f"t{i}", SPEC, modalities if i == 0 else ()) for i in range(number)}


def given_by(teachers: dict[str, Teacher], batch: Batch) -> Tensor:
    return torch.stack([teacher(batch).need(Signal.LOGITS) for teacher in teachers.values()])


def student() -> Outputs:
    return Outputs("student", logits=torch.randn(ROWS, 4))


def test_each_teacher_is_a_prediction_of_its_own() -> None:
    teachers, batch = cast(), batch_of()
    found = teacher_predictions(KD(), student(), batch, teachers)
    assert [prediction.name for prediction in found] == list(teachers)
    for prediction, logits in zip(found, given_by(teachers, batch), strict=True):
        assert torch.equal(prediction.at(4.0), logits)
        assert prediction.weight.tolist() == [1.0] * ROWS
        assert (prediction.share, prediction.seen) == (pytest.approx(1 / 3), None)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mean_of_probabilities(temperature: float) -> None:
    teachers, batch = cast(), batch_of()
    (prediction,) = teacher_predictions(KD(combine="probabilities"), student(), batch, teachers)
    wanted = (given_by(teachers, batch) / temperature).softmax(2).mean(0)
    torch.testing.assert_close((prediction.at(temperature) / temperature).softmax(1), wanted)


def test_mean_of_logits() -> None:
    teachers, batch = cast(), batch_of()
    (prediction,) = teacher_predictions(KD(combine="logits"), student(), batch, teachers)
    torch.testing.assert_close(prediction.at(4.0), given_by(teachers, batch).mean(0))


def test_weighted_mean_of_probabilities() -> None:
    teachers, batch = cast(), batch_of()
    config = KD(combine="weighted", teacher_weights={"t0": 3.0, "t2": 0.0})
    (prediction,) = teacher_predictions(config, student(), batch, teachers)
    soft = (given_by(teachers, batch) / 2.0).softmax(2)
    torch.testing.assert_close((prediction.at(2.0) / 2.0).softmax(1), 0.75 * soft[0] + 0.25 * soft[1])


def test_a_row_seen_by_a_teacher_of_no_weight_alone_is_taught_by_that_one() -> None:
    batch = batch_of(present={"rare": torch.arange(ROWS) != 2})
    teachers = cast(2, ("rare",))
    config = KD(combine="weighted", teacher_weights={"t1": 0.0})
    (prediction,) = teacher_predictions(config, student(), batch, teachers)
    wanted = teachers["t1"](batch).need(Signal.LOGITS)[2]
    torch.testing.assert_close(prediction.at(1.0)[2].softmax(0), wanted.softmax(0))


def test_best_teacher_of_each_labelled_row() -> None:
    teachers = cast()
    labelled = torch.tensor([True, False, True, True, True, True])
    targets = torch.arange(ROWS) % 4
    targets[5] = MISSING_TARGET
    batch = batch_of(targets=targets, labelled=labelled)
    (prediction,) = teacher_predictions(KD(combine="best"), student(), batch, teachers)
    logits = given_by(teachers, batch)
    for row in range(ROWS):
        soft = logits[:, row].softmax(1)
        known = bool(labelled[row]) and int(targets[row]) != MISSING_TARGET
        wanted = soft[int(soft[:, targets[row]].argmax())] if known else soft.mean(0)
        torch.testing.assert_close(prediction.at(1.0)[row].softmax(0), wanted)


def test_the_best_teacher_does_not_depend_on_a_hidden_label() -> None:
    teachers, labelled = cast(), torch.arange(ROWS) % 2 == 0
    found = []
    for shift in (0, 1):
        targets = torch.where(labelled, torch.arange(ROWS) % 4, (torch.arange(ROWS) + shift) % 4)
        (prediction,) = teacher_predictions(
            KD(combine="best"), student(), batch_of(targets=targets, labelled=labelled), teachers
        )
        found.append(prediction.at(2.0))
    assert torch.equal(*found)


def test_in_the_control_the_best_teacher_is_judged_by_the_rows_that_it_looked_at() -> None:
    teachers, partner = cast(2), torch.arange(ROWS).roll(1)
    shuffled: dict[str, Teacher] = {
        name: Shuffled(teacher, partner, lambda ids, view: batch_of(ids=ids, targets=ids % 4))
        for name, teacher in teachers.items()
    }
    (prediction,) = teacher_predictions(KD(combine="best"), student(), batch_of(), shuffled)
    (plain,) = teacher_predictions(KD(combine="best"), student(), batch_of(ids=partner, targets=partner % 4), teachers)
    assert torch.equal(prediction.at(1.0), plain.at(1.0))


@pytest.mark.parametrize("combine", ["each", "probabilities", "logits", "weighted", "best"])
def test_a_teacher_that_did_not_see_a_row_says_nothing_of_it(combine: str) -> None:
    seen = torch.tensor([True, False, True, False, True, True])
    batch = batch_of(present={"rare": seen})
    config = KD.model_validate({"combine": combine})
    both = teacher_predictions(config, student(), batch, cast(2, ("rare",)))
    alone = teacher_predictions(config, student(), batch, dict(list(cast(2).items())[1:]))
    rows = ~seen
    torch.testing.assert_close(both[-1].at(2.0)[rows].softmax(1), alone[0].at(2.0)[rows].softmax(1))
    value = torch.ones(ROWS)
    terms = [prediction.term(value) for prediction in both]
    total = torch.stack([term.value * term.weight for term in terms]).sum(0)
    # Terms of its own are averaged as they are; one prediction of several is there wherever somebody saw the row.
    unseen = 0.5 if combine == "each" else 1.0
    assert total.tolist() == pytest.approx([1.0 if there else unseen for there in seen.tolist()])


@pytest.mark.parametrize("combine", ["each", "probabilities", "logits", "weighted", "best"])
def test_a_row_that_nobody_saw_teaches_nothing_and_harms_nothing(combine: str) -> None:
    seen = torch.tensor([True, False, True, True, True, True])
    batch = batch_of(present={"rare": seen})
    teachers: dict[str, Teacher] = {name: FakeTeacher(name, SPEC, ("rare",)) for name in ("a", "b")}
    method = KD.model_validate({"combine": combine}).build(SPEC, dict.fromkeys(teachers, SPEC), DataSpec(ROWS, 4))
    step = method(batch, FakeTeacher("student", SPEC), teachers, Progress())
    for name, term in step.terms.items():
        if name != "task":
            assert float(term.value[1]) == 0, name
            assert bool(term.value.isfinite().all()), name


def test_predictions_are_of_the_rows_of_the_students_outputs() -> None:
    outputs = Outputs("student", logits=torch.randn(2, 4), rows=torch.tensor([1, 4]))
    teachers, batch = cast(2), batch_of(labelled=torch.tensor([True, True, True, True, False, True]))
    for combine in ("each", "probabilities"):
        (prediction, *_) = teacher_predictions(KD.model_validate({"combine": combine}), outputs, batch, teachers)
        assert len(prediction.at(1.0)) == len(prediction.weight) == 2
    assert student_targets(outputs, batch).tolist() == [1, MISSING_TARGET]


def test_standardised_logits_on_both_sides() -> None:
    teachers, batch = cast(2), batch_of()
    (prediction,) = teacher_predictions(KD(combine="logits", standardise=True), student(), batch, teachers)
    wanted = torch.stack([standardised(one) for one in given_by(teachers, batch)]).mean(0)
    torch.testing.assert_close(prediction.at(2.0), wanted)
    specs = dict.fromkeys(teachers, SPEC)
    plain = FakeTeacher("student", SPEC)
    scaled = FakeTeacher("student", SPEC, given={Signal.LOGITS: 5 * plain(batch).need(Signal.LOGITS) + 3})
    method = KD(standardise=True).build(SPEC, specs, DataSpec(ROWS, 4))
    one, two = (method(batch, each, teachers, Progress()).terms["kd/t0"].value for each in (plain, scaled))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_dense_logits_are_combined_pixel_by_pixel() -> None:
    spec = OutputSpec(logits=(4, 2, 3))
    teachers: dict[str, Teacher] = {name: FakeTeacher(name, spec) for name in ("a", "b")}
    batch = batch_of(targets=torch.randint(0, 4, (ROWS, 2, 3)))
    outputs = Outputs("student", logits=torch.randn(ROWS, 4, 2, 3))
    soft = given_by(teachers, batch).softmax(2)
    for combine, wanted in (("probabilities", soft.mean(0)), ("weighted", soft.mean(0))):
        (prediction,) = teacher_predictions(KD.model_validate({"combine": combine}), outputs, batch, teachers)
        torch.testing.assert_close(prediction.at(1.0).softmax(1), wanted)
    assert teacher_predictions(KD(combine="best"), outputs, batch, teachers)[0].at(1.0).shape == (ROWS, 4, 2, 3)


def test_weights_that_cannot_be_are_refused() -> None:
    with raises(ValueError, "['a']"):
        KD(teacher_weights={"a": -1.0, "b": 2.0})
    specs = {"audio": SPEC, "mm": SPEC}
    with raises(SettingError, "kd", "teacher_weights", "'audo'", "'audio'"):
        KD(teacher_weights={"audo": 1.0}).check(SPEC, specs)
    with raises(SettingError, "teacher", 0):
        KD(combine="weighted", teacher_weights={"audio": 0.0, "mm": 0.0}).check(SPEC, specs)


def test_dense_logits_are_refused_where_one_prediction_is_compared() -> None:
    dense = OutputSpec(logits=(4, 8, 8))
    config: LogitConfig = KD()
    config.check(dense, {"mm": dense})
    with raises(ApplicabilityError, "(8, 8)", "dense"):
        config.check(dense, {"mm": dense}, dense=False)
