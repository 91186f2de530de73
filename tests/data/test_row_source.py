import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import toy_recipe
from facts import raises, states
from row_sources import TensorRows, from_rows
from torch import Tensor

from crossdistill import run
from crossdistill.batch import InputSpec
from crossdistill.compare.results.pairwise import sample_numbers
from crossdistill.data.augmentation import OwnAugmentation, Variation, Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.data.row_source import RowSource
from crossdistill.data.workers import Workers, end_workers
from crossdistill.errors import CrossdistillError, DataError, ShapeError
from crossdistill.planning.sources import unkeyed_views
from crossdistill.recipe import Recipe
from crossdistill.stage import Stage
from crossdistill.testing import toy_dataset
from crossdistill.testing.rehearsal import with_absent
from crossdistill.training.evaluation import evaluate_folder

VALUES = torch.arange(120.0).view(40, 3)


class Tokens(TensorRows):
    """Rows as a mapping of ids and their lengths."""

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"values": self.values[rows], "lengths": 1 + rows % 3}


def own(source: RowSource, **more: object) -> Dataset:
    return Dataset.from_arrays("own", {"image": source, "x": np.ones((40, 2))}, [0, 1] * 20, **more)


def test_sources_stand_beside_tensors() -> None:
    source = TensorRows(VALUES)
    dataset = own(source)
    assert source.fetched == []
    assert dataset.input_specs["image"] == InputSpec("array", (3,))
    batch = dataset.batch(torch.tensor([7, 2]))
    assert batch.inputs["image"].equal(VALUES[[7, 2]])
    assert list(dataset.batch(torch.tensor([1]), only={"x"}).inputs) == ["x"]
    assert source.fetched == [7, 2]
    states(repr(dataset), "image", "TensorRows", "40 rows")
    assert hide_labels(dataset, 0.5).inputs["image"] is source
    assert len(dataset.example().inputs["image"]) == 2


def test_the_fingerprint_is_of_the_source() -> None:
    one, same, other = own(TensorRows(VALUES)), own(TensorRows(VALUES.clone())), own(TensorRows(VALUES + 1))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint
    one.check_unchanged()
    one.inputs["image"].fingerprint = "another"
    with raises(DataError, "own"):
        one.check_unchanged()


def test_absent_rows_are_not_read() -> None:
    present = [row % 2 == 0 for row in range(40)]
    source = TensorRows(VALUES, broken={row: OSError("no file") for row in range(1, 40, 2)})
    dataset = own(source, present={"image": present})
    batch = dataset.batch(torch.tensor([1, 2, 3]))
    assert batch.inputs["image"].tolist() == [[0, 0, 0], VALUES[2].tolist(), [0, 0, 0]]
    assert not dataset.batch(torch.tensor([1, 3])).inputs["image"].any()
    tokens = own(Tokens(VALUES), present={"image": present}).batch(torch.tensor([1, 2])).inputs["image"]
    assert tokens["lengths"].tolist() == [0, 3]


def test_mappings_reach_the_batch_and_its_views() -> None:
    doubled = OwnAugmentation(lambda inputs, ids, view: {n: twice(v) for n, v in inputs.items()}, views=1)
    dataset = own(Tokens(VALUES), augmentation=doubled)
    inputs = dataset.batch(torch.tensor([4, 5]), view=torch.tensor([0, 1])).inputs["image"]
    assert inputs["values"].equal(torch.stack([VALUES[4], 2 * VALUES[5]]))
    varied = own(Tokens(VALUES), augmentation=Variations(inputs={"image": Variation(noise=1.0)}, views=1))
    with raises(ShapeError, "image", "values", "lengths", "OwnAugmentation"):
        varied.batch(torch.tensor([4]), view=torch.tensor([1]))


def twice(value: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return 2 * value if isinstance(value, Tensor) else {name: 2 * part for name, part in value.items()}


@pytest.mark.parametrize(
    "error", [OSError("truncated"), MemoryError(), ValueError("bad")], ids=lambda e: type(e).__name__
)
def test_a_row_that_cannot_be_read_is_named(error: Exception) -> None:
    dataset = own(TensorRows(VALUES, broken={5: error}))
    with raises(DataError, "own", "image", "row 5", "file-5.jpg", type(error).__name__):
        dataset.batch(torch.tensor([5]) if isinstance(error, MemoryError) else torch.tensor([4, 5, 6]))


def test_nan_is_found_when_a_row_is_read() -> None:
    values = VALUES.clone()
    values[6, 1] = torch.nan
    with raises(DataError, "image", "row 6", "file-6.jpg"):
        own(TensorRows(values)).batch(torch.arange(10))
    large = torch.full((40, 3), 3e38)
    assert own(TensorRows(large)).batch(torch.arange(10)).inputs["image"].equal(large[:10]), "the sum alone overflows"


def test_a_source_that_breaks_its_word_is_refused() -> None:
    class Wrong(TensorRows):
        def fetch(self, rows: Tensor) -> Tensor:
            return self.values[rows].long()

    with raises(ShapeError, "image", "int64", "float32", "Wrong"):
        own(Wrong(VALUES)).batch(torch.tensor([1]))
    lacking = TensorRows(VALUES)
    del lacking.deterministic
    with raises(DataError, "TensorRows", "deterministic"):
        own(lacking)
    short = TensorRows(VALUES)
    short.shape = (39, 3)
    with raises(CrossdistillError, "40", "39"):
        own(short)


def test_equal_rows_have_equal_numbers() -> None:
    dataset = own(TensorRows(VALUES % 6))
    numbers = sample_numbers(dataset, ["image"], np.array([0, 1, 2]))
    assert numbers[0] == numbers[2]
    assert numbers[0] != numbers[1]


def test_rows_that_differ_each_time_are_not_banked() -> None:
    dataset = from_rows(toy_dataset(), "first", deterministic=False)
    states(unkeyed_views(dataset)[0], "first")
    assert not unkeyed_views(from_rows(toy_dataset()))


def _recipe(dataset: Dataset, **fields: object) -> Recipe:
    return toy_recipe(Stage(method="kd", epochs=2, batch_size=48), data=dataset, **fields)


def test_a_run_has_the_same_numbers_as_from_memory(tmp_path: Path) -> None:
    memory = replace(hide_labels(with_absent(toy_dataset(), 0.0), 0.5), sample="")
    for name, dataset in (("memory", memory), ("rows", replace(from_rows(memory), workers=Workers(2)))):
        run(_recipe(dataset, control="shuffled"), tmp_path / name)
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("memory", "rows"))
    assert one == other
    recipe = _recipe(from_rows(memory), control="shuffled")
    found = evaluate_folder(tmp_path / "rows", recipe, "validation")
    end_workers()
    assert found == evaluate_folder(tmp_path / "memory", _recipe(memory), "validation")
    assert not multiprocessing.active_children()
