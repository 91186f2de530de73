"""Targets of every kind as people hand them over: read as what the task says, or refused with the choices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises

from crossdistill.data.dataset import Dataset
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.data.targets import has_target, strata
from crossdistill.errors import DataError, ShapeError

ROWS = 40
NAN = float("nan")
NUMBERS = np.linspace(10.0, 49.0, ROWS)
SOFT = np.stack([np.linspace(0, 1, ROWS), 1 - np.linspace(0, 1, ROWS)], 1)
LABELS = [["dog"] * (row % 2 == 0) + ["cat", "owl"] * (row % 5 == 0) for row in range(ROWS)]
MATRIX = np.array([[float(name in row) for name in ("cat", "dog", "owl")] for row in LABELS])


def made(targets: Any, **more: Any) -> Dataset:
    return Dataset.from_arrays("own", {"x": np.ones((ROWS, 3))}, targets, **more)


def test_numbers_are_standardised_on_the_training_split() -> None:
    data = made(NUMBERS, task="regression")
    assert (data.task, data.classes, data.targets.shape) == ("regression", ("value",), (ROWS, 1))
    assert data.targets.flatten().tolist() == pytest.approx(NUMBERS.tolist()), "kept in their unit"
    learnt = data.batch(data.splits["train"]).targets
    assert learnt is not None
    assert float(learnt.mean()) == pytest.approx(0, abs=1e-6)
    assert float(learnt.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert data.scale is not None
    assert torch.allclose(data.scale.in_unit(learnt), data.targets[data.splits["train"]])
    assert "tenths of the target" in data.how_split
    plain = made(NUMBERS, task="regression", standardise=False)
    assert plain.scale is None
    assert torch.equal(plain.learnt(torch.arange(4)), plain.targets[:4])
    assert len({data.fingerprint, plain.fingerprint, made(np.arange(ROWS) % 3).fingerprint}) == 3


def test_tenths_of_a_number_are_in_every_split() -> None:
    data = made(NUMBERS, task="regression")
    tenth, _ = strata(data.targets, "regression")
    assert set(tenth.tolist()) == set(range(10))
    assert set(tenth[data.splits["test"]].tolist()) >= set(range(8))


def test_missing_numbers_are_missing() -> None:
    targets = np.stack([NUMBERS, NUMBERS * 2], 1)
    targets[3, 0], targets[5] = NAN, NAN
    data = made(targets, task="regression", classes=["weight", "price"])
    assert data.classes == ("weight", "price")
    assert has_target(data.targets).tolist() == [row != 5 for row in range(ROWS)]
    assert "1 rows without" in repr(data)
    assert "'weight' 10 to 49" in repr(data)


@pytest.mark.parametrize(
    "targets",
    [MATRIX, MATRIX.astype(bool), MATRIX.tolist(), torch.tensor(MATRIX), LABELS, [set(row) for row in LABELS]],
)
def test_labels_are_names_or_zeros_and_ones(targets: Any) -> None:
    named = {} if targets is LABELS or isinstance(targets[0], set) else {"classes": ["cat", "dog", "owl"]}
    data = made(targets, task="multi-label", **named)
    assert data.classes == ("cat", "dog", "owl")
    assert torch.equal(data.targets, torch.tensor(MATRIX, dtype=torch.float32))
    assert all(bool((data.targets[rows] == 1).any(0).all()) for rows in data.splits.values()), "each label everywhere"


def test_rows_without_labels_are_known_to_have_none_or_are_unknown() -> None:
    data = made([None, [], *LABELS[2:]], task="multi-label")
    assert has_target(data.targets)[:2].tolist() == [False, True]


def test_soft_labels() -> None:
    data = made(SOFT, task="soft", classes=["a", "b"])
    assert data.targets.dtype == torch.float32
    assert "largest class" in data.how_split
    assert "soft: 'a' 50.0%" in repr(data)


@pytest.mark.parametrize(
    ("targets", "more", "error", "facts"),
    [
        (NUMBERS + 0.5, {}, DataError, ["task='regression'"]),
        (MATRIX, {}, ShapeError, ["task='multi-label'", "task='regression'"]),
        (SOFT, {}, ShapeError, ["task='soft'", "task='regression'"]),
        (LABELS, {}, (DataError, ShapeError), ["task='multi-label'"]),
        (NUMBERS, {"task": "none"}, DataError, ["none"]),
        (None, {"task": "soft"}, DataError, ["soft"]),
        (SOFT * 2, {"task": "soft"}, DataError, ["row 0", "sum 2", "divide"]),
        (SOFT - 0.5, {"task": "soft"}, DataError, ["row 0"]),
        (MATRIX * 2, {"task": "multi-label"}, DataError, ["row 0", "0 or 1"]),
        (["dog, cat"] * ROWS, {"task": "multi-label"}, DataError, ["row 0", "list of names"]),
        (LABELS, {"task": "multi-label", "classes": ["dog", "cow", "owl"]}, DataError, ["cat"]),
        (np.where(NUMBERS > 20, np.inf, NUMBERS), {"task": "regression"}, DataError, ["Inf", "row 11"]),
        (np.ones(ROWS), {"task": "regression"}, DataError, ["'value' is 1 in every"]),
        (np.array(["x"] * ROWS), {"task": "regression"}, DataError, ["regression"]),
        (NUMBERS.reshape(1, ROWS, 1).repeat(2, 2)[0][:, :, None], {"task": "regression"}, ShapeError, ["columns"]),
        (MATRIX, {"task": "multi-label", "classes": ["a", "b"]}, ShapeError, ["2", "float32"]),
        (MATRIX, {"task": "multi-label", "classes": ["a", "b", "a"]}, DataError, ["a twice"]),
    ],
)
def test_targets_that_are_refused(targets: Any, more: dict[str, Any], error: Any, facts: list[str]) -> None:
    with raises(error, *facts):
        made(targets, **more)


def test_targets_without_a_task_are_classes_as_before() -> None:
    assert made(np.arange(ROWS) % 3).task == "classes"
    assert made(np.arange(ROWS) % 3, task="classes").fingerprint == made(np.arange(ROWS) % 3).fingerprint


def test_labels_are_hidden_evenly_for_every_task() -> None:
    for targets, task in ((NUMBERS, "regression"), (MATRIX, "multi-label"), (SOFT, "soft")):
        data = hide_labels(made(targets, task=task), 0.5)
        assert data.labelled is not None
        train = data.splits["train"]
        assert 0.4 <= float(data.labelled[train].double().mean()) <= 0.6


def test_a_data_set_of_numbers_is_stored_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdistill.data.stored import open_stored, store

    monkeypatch.setattr("crossdistill.data.stored.digest_of", lambda folder: "0")
    data = made(NUMBERS, task="regression")
    store(tmp_path, data)
    opened = open_stored(tmp_path)
    assert (opened.task, opened.scale) == ("regression", data.scale)
    assert torch.equal(opened.targets, data.targets)
