import numpy as np
import pytest
import torch
from facts import raises

from crossdistill.batch import MISSING_TARGET, InputSpec
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.errors import DataError, SettingError, ShapeError


def arrays(rows: int = 100, classes: int = 4) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = {"image": rng.random((rows, 1, 4, 4)), "audio": rng.random((rows, 7)).astype(np.float32)}
    return inputs, rng.integers(classes, size=rows)


def small(rows: int = 100, **more: object) -> Dataset:
    inputs, targets = arrays(rows)
    return Dataset.from_arrays("own", inputs, targets, **more)


def test_own_arrays_become_a_dataset() -> None:
    inputs, targets = arrays()
    dataset = Dataset.from_arrays("own", inputs, targets, licences=[Licence("own", "MIT", "here", True)])
    assert (len(dataset), dataset.classes) == (100, ("0", "1", "2", "3"))
    assert dataset.inputs["image"].dtype == torch.float32
    assert dataset.input_specs["audio"] == InputSpec(kind="array", shape=(7,))
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 60, "validation": 20, "test": 20}
    assert torch.cat(list(dataset.splits.values())).sort().values.equal(torch.arange(100))
    assert dataset.targets.equal(torch.from_numpy(targets))


def test_any_number_of_modalities() -> None:
    rows = 30
    inputs = {name: torch.rand(rows, 2) for name in ("a", "b", "c", "d")}
    dataset = Dataset.from_arrays("many", inputs, torch.zeros(rows, dtype=torch.int64))
    assert set(dataset.example().inputs) == {"a", "b", "c", "d"}
    assert set(Dataset.from_arrays("one", {"a": inputs["a"]}, [0] * rows).inputs) == {"a"}


def test_batch_holds_exactly_the_rows_asked_for() -> None:
    dataset = small(domain=["speech", "music"] * 50, present={"audio": [True, False] * 50}, labelled=[True] * 100)
    rows = torch.tensor([7, 2, 90])
    batch = dataset.batch(rows, total_rows=12)
    assert batch.ids.equal(rows)
    assert batch.total_rows == 12
    assert batch.inputs["image"].equal(dataset.inputs["image"][rows])
    assert batch.targets.equal(dataset.targets[rows])
    assert batch.domain == ["music", "speech", "speech"]
    assert batch.present["audio"].tolist() == [False, True, True]
    assert batch.labelled is not None
    assert (dataset.batch(rows[:1]).domain, dataset.batch(rows).total_rows) == (["music"], 3)
    assert dataset.example(3).ids.equal(dataset.splits["train"][:3])


def test_class_names_as_targets_and_rows_without_any() -> None:
    dataset = Dataset.from_arrays("animals", {"x": np.ones((6, 2))}, ["cat", "dog", "ant", "cat", "dog", "ant"])
    assert (dataset.classes, dataset.targets.tolist()) == (("ant", "cat", "dog"), [1, 2, 0, 1, 2, 0])
    with raises(DataError, "'ant'", "'cat'", "'dog'"):
        Dataset.from_arrays("animals", {"x": np.ones((6, 2))}, ["cat", "dog", "ant"] * 2, classes=("cat", "dog"))
    dataset = Dataset.from_arrays("none", {"x": np.ones((10, 2))}, classes=("a", "b"))
    assert (dataset.targets == MISSING_TARGET).all()
    assert not dataset.example().has_target().any()


def test_splits_of_ones_own_and_seeds() -> None:
    dataset = small(splits={"train": range(50), "validation": range(50, 60), "test": np.arange(60, 100)})
    assert dataset.splits["validation"].tolist() == list(range(50, 60))
    assert not small(seed=1).splits["train"].equal(small(seed=2).splits["train"])
    assert small(seed=1).splits["train"].equal(small(seed=1).splits["train"])


@pytest.mark.parametrize(
    ("splits", "facts"),
    [
        ({"train": [0, 1], "test": [2]}, ("train, validation, test", "found train, test")),
        ({"train": [0, 1], "validation": [1, 2], "test": [3]}, ("'train'", "'validation'", "1 rows")),
        ({"train": [0, 0], "validation": [1], "test": [3]}, ("'train'", "twice")),
        ({"train": [0], "validation": [], "test": [3]}, ("'validation'", "empty")),
        ({"train": [0], "validation": [1], "test": [100]}, ("100 to 100", "0 to 99")),
        ({"train": [0], "validation": [1], "test": [-1]}, ("-1 to -1",)),
    ],
)
def test_splits_that_cannot_be(splits: dict[str, list[int]], facts: tuple[str, ...]) -> None:
    with raises(DataError, *facts):
        small(splits={name: np.array(rows, dtype=np.int64) for name, rows in splits.items()})


def test_arrays_of_different_lengths_are_named() -> None:
    with raises(ShapeError, "image 10", "audio 9", "targets 10"):
        Dataset.from_arrays("own", {"image": np.ones((10, 2)), "audio": np.ones((9, 2))}, np.zeros(10, int))
    with raises(ShapeError, "image 10", "targets 10", "present['image'] 9"):
        Dataset.from_arrays("own", {"image": np.ones((10, 2))}, np.zeros(10, int), present={"image": [True] * 9})
    with raises(ShapeError, "modality"):
        Dataset.from_arrays("own", {}, np.zeros(10, int))
    with raises(ShapeError, "(10,)"):
        Dataset.from_arrays("own", {"image": np.ones(10)}, np.zeros(10, int))


def test_a_specification_that_does_not_fit() -> None:
    with raises(ShapeError, "'x'", "(2,)", "(3,)"):
        Dataset.from_arrays("own", {"x": np.ones((10, 2))}, [0] * 10, input_specs={"x": InputSpec("array", (3,))})
    with raises(DataError, "'y'", "known: x"):
        Dataset.from_arrays("own", {"x": np.ones((10, 2))}, [0] * 10, input_specs={"y": InputSpec("array", (2,))})


@pytest.mark.parametrize(
    ("targets", "facts"),
    [([0.5] * 10, ("float64",)), ([-1] + [0] * 9, ("row 0: -1",)), ([0] * 9 + [7], ("row 9: 7", "0 to 1"))],
)
def test_targets_that_name_no_class(targets: list[float], facts: tuple[str, ...]) -> None:
    with raises(DataError, *facts):
        Dataset.from_arrays("own", {"x": np.ones((10, 2))}, targets, classes=("a", "b"))


def test_nan_and_inf_are_refused_with_their_rows() -> None:
    values = np.ones((10, 2))
    values[3, 1] = np.nan
    values[8, 0] = np.inf
    with raises(DataError, "'x'", "2 of 10", "3, 8"):
        Dataset.from_arrays("own", {"x": values}, [0] * 10)
    present = {"x": [row not in (3, 8) for row in range(10)]}
    assert len(Dataset.from_arrays("own", {"x": values}, [0] * 10, present=present)) == 10


def test_fingerprint_changes_with_the_content_and_only_then() -> None:
    inputs, targets = arrays()
    first = Dataset.from_arrays("own", inputs, targets).fingerprint
    assert first == Dataset.from_arrays("own", inputs, targets).fingerprint
    other = {**inputs, "audio": inputs["audio"].copy()}
    other["audio"][50, 3] += 1e-6
    changed = targets.copy()
    changed[0] = (changed[0] + 1) % 4
    variants = [
        Dataset.from_arrays("own", other, targets),
        Dataset.from_arrays("own", inputs, changed),
        Dataset.from_arrays("own", inputs, targets, seed=1),
        Dataset.from_arrays("own", inputs, targets, classes=("a", "b", "c", "d")),
        Dataset.from_arrays("own", inputs, targets, present={"audio": [True] * 99 + [False]}),
        Dataset.from_arrays("own", inputs, targets, labelled=[True] * 99 + [False]),
    ]
    prints = [variant.fingerprint for variant in variants]
    assert len({first, *prints}) == len(variants) + 1
    assert hide_labels(Dataset.from_arrays("own", inputs, targets), 0.5).fingerprint == first, "hiding is no content"


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.9])
def test_hidden_labels_are_stratified_and_stay_in_the_training_split(fraction: float) -> None:
    dataset = small(1000)
    hidden = hide_labels(dataset, fraction, seed=3)
    train = dataset.splits["train"]
    for number in range(4):
        own = train[dataset.targets[train] == number]
        assert int(hidden.labelled[own].sum()) == round(fraction * len(own))
    assert hidden.labelled[dataset.splits["validation"]].all()
    assert hidden.labelled[dataset.splits["test"]].all()
    assert hidden.targets.equal(dataset.targets), "teachers keep every target"


def test_hidden_labels_are_nested_and_follow_the_seed() -> None:
    dataset = small(1000)

    def kept(fraction: float, seed: int) -> set[int]:
        labelled = hide_labels(dataset, fraction, seed).labelled
        return set(dataset.splits["train"][labelled[dataset.splits["train"]]].tolist())

    previous: set[int] = set()
    for fraction in (0.01, 0.05, 0.1, 0.5, 0.99):
        now = kept(fraction, 0)
        assert previous < now
        previous = now
    assert kept(0.1, 0) == kept(0.1, 0)
    assert kept(0.1, 0) != kept(0.1, 1)


def test_every_class_keeps_a_label_while_the_fraction_allows_it() -> None:
    targets = np.array([0] * 970 + [1] * 15 + [2] * 15)
    rows = {"train": np.arange(1000), "validation": [1000], "test": [1001]}
    dataset = Dataset.from_arrays("rare", {"x": np.ones((1002, 2))}, [*targets, 0, 0], splits=rows)
    labelled = hide_labels(dataset, 0.01).labelled
    assert [int(labelled[:1000][dataset.targets[:1000] == number].sum()) for number in range(3)] == [10, 1, 1]
    few = hide_labels(dataset, 0.001).labelled
    assert int(few[:1000].sum()) == 1


def test_hiding_respects_missing_targets_and_what_is_hidden_already() -> None:
    inputs, targets = arrays(1000)
    targets[::2] = MISSING_TARGET
    before = np.arange(1000) % 4 != 1
    dataset = Dataset.from_arrays("own", inputs, targets, labelled=before)
    labelled = hide_labels(dataset, 0.5).labelled
    train = dataset.splits["train"]
    assert not labelled[train][dataset.targets[train] == MISSING_TARGET].any()
    assert not labelled[train][~torch.from_numpy(before)[train]].any()


def test_all_labels_is_the_same_dataset_and_nonsense_is_refused() -> None:
    dataset = small()
    assert hide_labels(dataset, 1.0) is dataset
    for fraction in (0.0, -0.1, 1.5):
        with raises(SettingError, "(0, 1]"):
            hide_labels(dataset, fraction)
