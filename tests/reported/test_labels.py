"""Targets and masks as people hand them over: taken as what they mean, or refused with the cure and the first row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises

from crossdistill.batch import MISSING_TARGET, InputSpec
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.errors import CrossdistillError, DataError, SettingError, ShapeError

ROWS = 30
IDS = np.arange(ROWS) % 3
NAMES = np.array(["ant", "bee", "cat"])[IDS]
INPUTS = {"image": np.ones((ROWS, 1, 4, 4)), "audio": np.ones((ROWS, 3))}


def made(targets: Any = IDS, **more: Any) -> Dataset:
    return Dataset.from_arrays("own", INPUTS, targets, **more)


class Column:
    """What a data frame's column is to others: values behind `__array__`."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (NAMES.astype(object), ("ant", "bee", "cat")),
        (Column(NAMES.astype(object)), ("ant", "bee", "cat")),
        (NAMES.astype("S"), ("ant", "bee", "cat")),
        (NAMES.tolist(), ("ant", "bee", "cat")),
        (IDS.astype(float), ("0", "1", "2")),
        (IDS.astype(float).astype(object), ("0", "1", "2")),
        (IDS.astype(">i2"), ("0", "1", "2")),
        (IDS.astype(np.uint8), ("0", "1", "2")),
        (torch.from_numpy(IDS).bfloat16(), ("0", "1", "2")),
        ([torch.tensor(int(one)) for one in IDS], ("0", "1", "2")),
    ],
    ids=["objects", "column", "bytes", "list", "floats", "float objects", "big-endian", "uint8", "bfloat16", "scalars"],
)
def test_c_labels_of_any_origin(targets: Any, classes: tuple[str, ...]) -> None:
    dataset = made(targets)
    assert dataset.classes == classes
    assert dataset.targets.tolist() == IDS.tolist()


def test_c_labels_that_are_truth_values() -> None:
    assert made(IDS > 0).classes == ("False", "True")
    assert made((IDS > 0).tolist()).targets.tolist() == (IDS > 0).astype(int).tolist()
    assert made(IDS > 0, classes=("no", "yes")).classes == ("no", "yes")


def test_c_labels_named_and_missing() -> None:
    mixed = [MISSING_TARGET if row < 6 else name for row, name in enumerate(NAMES.tolist())]
    for targets in (mixed, np.array(mixed, dtype=object)):
        dataset = made(targets)
        assert dataset.classes == ("ant", "bee", "cat")
        assert dataset.targets.tolist() == [*[MISSING_TARGET] * 6, *IDS[6:].tolist()]


@pytest.mark.parametrize(
    ("targets", "kind", "facts"),
    [
        (np.eye(3)[IDS], ShapeError, ["(30, 3)", "argmax(1)"]),
        (np.eye(3)[IDS].tolist(), ShapeError, ["(30, 3)", "argmax(1)"]),
        (np.full((ROWS, 3), 0.3), ShapeError, ["(30, 3)", "row 0", "0.3", "argmax(1)"]),
        (IDS[:, None], ShapeError, ["(30, 1)", "targets[:, 0]"]),
        (np.zeros((ROWS, 4, 4), int), ShapeError, ["(30, 4, 4)"]),
        ([[1]] * 29 + [[1, 2]], ShapeError, ["row 29", "(2,)"]),
        (np.array(3), ShapeError, ["single value"]),
        (["ant", 1] * 15, DataError, ["row 1", "1", "text"]),
        ([0, True] * 15, DataError, ["row 1", "True", "number"]),
        (["ant", None] * 15, DataError, ["row 1", "None", "fillna(-100)"]),
        (np.array(["ant", float("nan")] * 15, dtype=object), DataError, ["row 1", "nan", "fillna(-100)"]),
        (np.where(IDS > 1, np.nan, IDS), DataError, ["row 2", "nan", "-100"]),
        (IDS + 0.5 * (IDS > 1), DataError, ["row 2", "2.5", "float64"]),
        (np.where(IDS > 1, np.inf, IDS), DataError, ["row 2", "inf"]),
        (IDS + 0j, DataError, ["complex128"]),
        (np.array(["2020-01-01"] * ROWS, dtype="M8[D]"), DataError, ["datetime64"]),
        (np.full(ROWS, 2**63, dtype=np.uint64), DataError, ["row 0", str(2**63)]),
        (np.ma.array(IDS, mask=IDS > 1), DataError, ["masked"]),
    ],
)
def test_c_labels_that_are_refused(targets: Any, kind: type[CrossdistillError], facts: list[str]) -> None:
    with raises(kind, "targets", *facts):
        made(targets)


@pytest.mark.parametrize(
    ("ids", "missing"), [([0, 1, 2, 5], "3, 4"), ([1, 2, 3], "0"), ([0, 10**6], "1, 2, 3, 4, 5, 6, 7, 8, ...")]
)
def test_a9_ids_that_never_occur_are_named(ids: list[int], missing: str) -> None:
    targets = np.resize(ids, ROWS)
    with raises(DataError, missing, "classes=sorted(set(targets))"):
        made(targets)
    settled = made(targets, classes=sorted(set(targets)))
    assert settled.classes == tuple(map(str, ids)), "no class that no row has"
    assert [ids[number] for number in settled.targets.tolist()] == targets.tolist()


def test_a9_missing_targets_are_no_class() -> None:
    targets = np.resize([MISSING_TARGET, 0, 3], ROWS)
    dataset = made(targets, classes=sorted(set(targets)))
    assert dataset.classes == ("0", "3")
    assert dataset.targets.tolist() == np.resize([MISSING_TARGET, 0, 1], ROWS).tolist()


def test_a9_names_for_all_keep_ids_and_say_which_have_no_row(caplog: pytest.LogCaptureFixture) -> None:
    dataset = made(np.resize([0, 1, 2, 5], ROWS), classes=list("abcdef"))
    assert dataset.targets.max() == 5
    (remark,) = [one for one in dataset.remarks() if "'d', 'e'" in one]
    assert remark in caplog.text
    assert remark in repr(dataset)


@pytest.mark.parametrize("classes", ["abc", ["a", "a", "b"], ["a", 1, "b"], [0.5, 1.5, 2.5]])
def test_a9_classes_that_cannot_be(classes: Any) -> None:
    with raises(DataError, "classes"):
        made(classes=classes)


def test_a9_ids_from_one_with_names() -> None:
    with raises(DataError, "row 2: 3", "0 to 2"):
        made(IDS + 1, classes=("a", "b", "c"))
    with raises(DataError, "row 2", "`classes`"):
        made(classes=[0, 1])


@pytest.mark.parametrize(
    ("more", "kind", "facts"),
    [
        ({"present": {"aduio": [True] * ROWS}}, DataError, ["'aduio'", "'audio'", "present"]),
        ({"input_specs": {"imag": InputSpec("array", (1, 4, 4))}}, DataError, ["'imag'", "'image'", "input_specs"]),
        (
            {"augmentation": Variations(inputs={"imag": Variation(noise=1.0)})},
            SettingError,
            ["'imag'", "'image'", "augmentation"],
        ),
        ({"present": {"audio": [True] * 3}}, ShapeError, ["present['audio'] 3", "image 30", "targets 30"]),
        ({"groups": {"voice": [1, 2]}}, ShapeError, ["groups['voice'] 2", "audio 30"]),
        ({"domain": ["speech"]}, ShapeError, ["domain 1", "image 30"]),
        ({"domain": "s" * ROWS}, DataError, ["domain"]),
        ({"domain": [1] * ROWS}, DataError, ["domain", "row 0", "1"]),
        ({"groups": {"voice": [np.nan] * ROWS}}, DataError, ["groups['voice']", "nan", "row 0"]),
        ({"groups": {"voice": np.ones((ROWS, 1))}}, ShapeError, ["groups['voice']", "(30, 1)"]),
        ({"labelled": [1, 2, 3]}, DataError, ["labelled", "int64", "mask[numbers] = True"]),
        ({"labelled": np.arange(ROWS)}, DataError, ["labelled", "mask[numbers] = True"]),
        ({"present": {"audio": np.arange(ROWS)}}, DataError, ["present['audio']", "mask[numbers] = True"]),
        ({"labelled": np.ones(ROWS)}, DataError, ["labelled", "float64"]),
        ({"labelled": np.ones((ROWS, 1), bool)}, ShapeError, ["labelled", "(30, 1)"]),
        ({"labelled": [True] * 4}, ShapeError, ["labelled", "(4,)", "(30,)"]),
        ({"splits": {"train": [0, 1.5], "validation": [2], "test": [3]}}, DataError, ["'train'", "1.5", "row 1"]),
        ({"splits": {"train": ["a"], "validation": [2], "test": [3]}}, DataError, ["'train'", "<U1"]),
        ({"splits": {"train": [True], "validation": [2], "test": [3]}}, ShapeError, ["'train'", "1 rows", "30"]),
    ],
)
def test_a8_rowwise_arguments_that_are_refused(
    more: dict[str, Any], kind: type[CrossdistillError], facts: list[str]
) -> None:
    with raises(kind, *facts):
        made(**more)


def test_a8_a_dataset_made_by_hand_is_checked_too() -> None:
    dataset = made()
    with raises(DataError, "'aduio'", "'audio'"):
        replace(dataset, present={"aduio": torch.ones(ROWS, dtype=torch.bool)})
    with raises(DataError, "present", "int64"):
        replace(dataset, present={"audio": torch.arange(ROWS)})


def test_a8_masks_and_groups_that_mean_the_same() -> None:
    mask = IDS > 0
    for same in (mask.tolist(), mask.astype(int), torch.from_numpy(mask), mask.astype(object)):
        dataset = made(labelled=same, present={"audio": same})
        assert dataset.labelled.tolist() == mask.tolist() == dataset.present["audio"].tolist()
    voices = [f"voice {row % 6}" for row in range(ROWS)]
    assert made(groups={"voice": voices}).groups["voice"].tolist() == [row % 6 for row in range(ROWS)]
    splits = {"train": np.arange(ROWS) < 20, "validation": np.arange(ROWS) == 20, "test": np.arange(ROWS) > 20}
    assert made(splits=splits).splits["validation"].tolist() == [20]


def test_a7_a_class_without_a_kept_label_is_named() -> None:
    dataset = made(np.array(["often"] * 28 + ["rare"] * 2))
    hidden = hide_labels(dataset, 0.05)
    assert not any("label of" in remark for remark in dataset.remarks())
    assert any("'rare'" in remark and "label" in remark for remark in hidden.remarks())
