"""The split that is drawn where none is given: by class, whole groups together, said in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import raises
from sklearn.model_selection import StratifiedShuffleSplit

from crossdistill import Dataset, Recipe, Stage, run
from crossdistill.batch import MISSING_TARGET
from crossdistill.data.split import SPLITS, blocks
from crossdistill.errors import DataError, RecipeError
from crossdistill.testing import toy_network


def made(targets: Any, **more: Any) -> Dataset:
    return Dataset.from_arrays("own", {"first": np.random.default_rng(0).random((len(targets), 6))}, targets, **more)


def counts(dataset: Dataset, number: int) -> list[int]:
    return [int((dataset.targets[dataset.splits[split]] == number).sum()) for split in SPLITS]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "classes"), [(100, 4), (1000, 7), (777, 13)])
def test_a7_classes_are_split_as_scikit_learn_splits_them(rows: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    targets = np.minimum(draw.geometric(0.35, rows) - 1, classes - 1)
    targets[:classes] = np.arange(classes)
    targets = np.concatenate([targets, np.repeat(np.arange(classes), 3)])
    dataset = made(targets, seed=seed)
    sizes = [len(dataset.splits[split]) for split in SPLITS]
    assert sorted(torch.cat([dataset.splits[split] for split in SPLITS]).tolist()) == list(range(len(targets)))
    oracle = StratifiedShuffleSplit(1, train_size=sizes[0], test_size=sizes[2], random_state=seed)
    train, test = next(oracle.split(targets, targets))
    for number in range(classes):
        own = counts(dataset, number)
        assert abs(own[0] - int((targets[train] == number).sum())) <= 2
        assert abs(own[2] - int((targets[test] == number).sum())) <= 2
        assert min(own) >= 1
    assert np.abs(np.array(sizes) - np.array([0.6, 0.2, 0.2]) * len(targets)).max() <= classes


def test_a7_tiny_classes_train() -> None:
    dataset = made(np.array([0] * 50 + [1] * 3 + [2] * 2 + [3]))
    assert counts(dataset, 0) == [30, 10, 10]
    assert counts(dataset, 1) == [1, 1, 1]
    assert counts(dataset, 2)[0] == 1
    assert counts(dataset, 3) == [1, 0, 0]
    named = " ".join(dataset.remarks())
    assert "validation split has no row of" in named
    assert "'3'" in named
    assert "'0'" not in named


def test_a7_rows_without_target_are_dealt_too_and_seeds_differ() -> None:
    targets = np.where(np.arange(200) % 2, np.arange(200) % 4, MISSING_TARGET)
    targets[targets > 0] = (targets[targets > 0] - 1) // 2
    dataset = made(targets)
    assert counts(dataset, MISSING_TARGET) == [60, 20, 20]
    assert made(targets).splits["train"].equal(dataset.splits["train"])
    assert not made(targets, seed=1).splits["train"].equal(dataset.splits["train"])
    assert [len(rows) for rows in made([MISSING_TARGET] * 50).splits.values()] == [30, 10, 10]


def crowd(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    voice = draw.integers(40, size=rows)
    # Sessions lie within voices, two voices share the first session.
    session = np.where(voice < 2, 0, 10 * voice + draw.integers(2, size=rows))
    return draw.integers(3, size=rows), {"voice": voice, "session": session}


@pytest.mark.parametrize("seed", range(4))
def test_a7_groups_of_every_kind_stay_in_one_split(seed: int) -> None:
    targets, groups = crowd(seed=seed)
    dataset = made(targets, groups=groups, seed=seed)
    for ids in groups.values():
        where = [set(ids[dataset.splits[split]].tolist()) for split in SPLITS]
        assert sum(map(len, where)) == len(set.union(*where))
    assert not any("more than one split" in remark for remark in dataset.remarks())
    for number in range(3):
        share = np.array(counts(dataset, number)) / (targets == number).sum()
        assert np.abs(share - [0.6, 0.2, 0.2]).max() < 0.12
    for fact in ("'voice'", "'session'", f"seed {seed}", "by class"):
        assert fact in dataset.how_split
    assert dataset.how_split in repr(dataset)


def test_a7_with_groups_the_order_of_rows_is_irrelevant() -> None:
    targets, groups = crowd()
    order = np.random.default_rng(9).permutation(len(targets))
    first = made(targets, groups=groups)
    second = made(targets[order], groups={kind: ids[order] for kind, ids in groups.items()})
    for split in SPLITS:
        assert sorted(order[second.splits[split]].tolist()) == first.splits[split].tolist()
    assert made(targets, groups=groups, seed=1).splits["test"].tolist() != first.splits["test"].tolist()


def test_a7_every_class_trains_although_groups_hold_them() -> None:
    """The rare class is in two voices: one of them trains, whatever the seed."""
    voice = np.arange(120) % 12
    targets = np.where((voice < 2) & (np.arange(120) < 60), 1, 0)
    for seed in range(10):
        assert counts(made(targets, groups={"voice": voice}, seed=seed), 1)[0] > 0


def test_a7_groups_that_leave_no_way_to_split() -> None:
    rows = np.arange(30)
    with raises(DataError, "'own'", "6 of 'voice', 5 of 'noise'"):
        made(rows % 3, groups={"voice": rows % 6, "noise": rows % 5})
    with raises(DataError, 2, "2 of 'voice'"):
        made(rows % 3, groups={"voice": rows % 2})
    with raises(DataError, 3):
        made(rows % 3, groups={"voice": rows % 3})


def test_a7_blocks_follow_long_chains() -> None:
    rows = torch.arange(9999)
    chained = {"a": rows // 2, "b": (rows + 1) // 2}
    assert blocks(chained).max() == 0
    chained["b"][5000:] += 1
    assert sorted(set(blocks(chained).tolist())) == [0, 1]


def test_a7_given_splits_that_cut_a_group_are_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = np.arange(30)
    splits = {"train": rows[:10], "validation": rows[10:20], "test": rows[20:]}
    dataset = made(rows % 3, splits=splits, groups={"voice": rows // 6})
    (remark,) = [one for one in dataset.remarks() if "'voice'" in one]
    assert "2 of 5" in remark
    assert remark in caplog.text
    assert dataset.how_split == ""


def recipe(dataset: Dataset) -> Recipe:
    network = toy_network(("first",), classes=len(dataset.classes))
    return Recipe(data=dataset, student=network, stages=(Stage(method="supervised", epochs=1, steps=1),))


def test_a7_a_run_says_how_rows_were_split_and_what_is_missing(tmp_path: Path) -> None:
    dataset = made(np.array([0] * 50 + [1] * 10 + [2]))
    heard = Heard()
    run(recipe(dataset), tmp_path / "out", display=heard)
    for line in (dataset.how_split, *dataset.remarks()):
        assert any(line in said for said in heard.lines)
    assert len(dataset.remarks()) == 2


def test_a7_training_without_a_class_is_refused(tmp_path: Path) -> None:
    splits = {"train": range(20), "validation": range(20, 25), "test": range(25, 30)}
    dataset = made(np.array([0, 1] * 10 + [2] * 10), splits=splits)
    with raises(RecipeError, "'2'", "training split"):
        run(recipe(dataset), tmp_path / "out")
