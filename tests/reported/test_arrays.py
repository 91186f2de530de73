"""Arrays as people hand them over: taken with the same content, or refused with their name, type and what to do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import reference_arrays
from facts import raises
from torch import nn

from crossdistill import Dataset, InputSpec, Network, Recipe, Stage, run
from crossdistill.data.sets.av_mnist import AvMnistConfig
from crossdistill.errors import CrossdistillError, DataError, RecipeError, ShapeError
from crossdistill.recipes import make

ROWS = 30
IDS = np.arange(ROWS) % 3
VALUES = np.random.default_rng(0).random((ROWS, 4)).astype(np.float32)


def made(values: Any, **more: Any) -> Dataset:
    return Dataset.from_arrays("own", {"image": np.ones((ROWS, 2)), "audio": values}, IDS, **more)


def not_writable(values: np.ndarray) -> np.ndarray:
    copy = values.copy()
    copy.setflags(write=False)
    return copy


def packed(values: np.ndarray) -> np.ndarray:
    """As a field of records, whose strides are no multiple of its size."""
    records = np.zeros(values.shape, dtype=[("other", "i1"), ("own", "f4")])
    records["own"] = values
    return records["own"]


@pytest.mark.parametrize(
    "values",
    [
        VALUES[:, ::-1][:, ::-1],
        np.ascontiguousarray(VALUES[::-1])[::-1],
        np.asfortranarray(VALUES),
        VALUES.astype(">f4"),
        VALUES.astype(np.float64),
        VALUES.astype(np.longdouble),
        not_writable(VALUES),
        packed(VALUES),
        VALUES.tolist(),
        list(VALUES),
        [torch.tensor(row, requires_grad=True) for row in VALUES],
        torch.from_numpy(VALUES).requires_grad_(),
        np.repeat(VALUES, 2, axis=1)[:, ::2],
    ],
)
def test_c_arrays_of_any_layout_are_the_same_data(values: Any) -> None:
    dataset = made(values)
    assert dataset.inputs["audio"].allclose(torch.from_numpy(VALUES), atol=0, rtol=0)
    assert dataset.fingerprint == made(VALUES).fingerprint


def test_c_arrays_on_disk_that_may_not_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", VALUES)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    dataset = made(mapped)
    assert dataset.inputs["audio"].data_ptr() == mapped.ctypes.data, "read in place, not copied"
    assert dataset.fingerprint == made(VALUES).fingerprint


def test_c_arrays_of_one_number_an_example() -> None:
    lengths = np.arange(2 * ROWS)[::2]
    plain = made(lengths[:, None].copy()).fingerprint
    assert made(lengths[:, None]).fingerprint == plain
    assert made(torch.arange(2 * ROWS)[::2][:, None]).fingerprint == plain
    assert made(torch.ones(1, 4).expand(ROWS, 4)).fingerprint == made(torch.ones(ROWS, 4)).fingerprint


@pytest.mark.parametrize("kind", [np.float16, np.uint8, np.uint16, bool, np.int64])
def test_c_arrays_of_other_types_stay_what_they_are(kind: Any) -> None:
    values = (VALUES * 9).astype(kind)
    assert made(values).inputs["audio"].dtype == torch.from_numpy(values).dtype
    assert made(torch.from_numpy(VALUES).bfloat16()).inputs["audio"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("values", "kind", "facts"),
    [
        (VALUES[:, 0], ShapeError, ["(30,)", "[:, None]"]),
        (np.array(1.0), ShapeError, ["()"]),
        (VALUES[:0], ShapeError, ["image 30", "audio 0", "targets 30"]),
        (VALUES[:, :0], ShapeError, ["(30, 0)"]),
        ({"input_ids": VALUES, "mask": VALUES}, ShapeError, ["'input_ids'", "('input_ids', 'mask')", "input_adapter="]),
        ([[1, 2]] * 29 + [[1]], ShapeError, ["row 29", "1 to 2", "Padded()"]),
        ([[[1], [2, 3]]] * ROWS, ShapeError, ["row 0"]),
        ([np.ones(3)] * 29 + [np.ones(2)], ShapeError, ["row 29", "2 to 3", "Padded()"]),
        ([torch.ones(3)] * 29 + [torch.ones(2)], ShapeError, ["row 29", "2 to 3", "Padded()"]),
        (np.array([["a", 1]] * ROWS, dtype=object), DataError, ["object", "row 0", "str"]),
        (np.array([[1, 2.0]] * ROWS, dtype=object), DataError, ["object", "astype(numpy.float32)"]),
        (VALUES + 0j, DataError, ["complex64", "x.imag"]),
        (torch.ones(ROWS, 3) + 0j, DataError, ["complex64", "x.imag"]),
        (np.array([["2020-01-01"]] * ROWS, dtype="M8[D]"), DataError, ["datetime64", "timedelta64"]),
        (np.array([["a"]] * ROWS), DataError, ["<U1"]),
        (torch.eye(ROWS).to_sparse(), DataError, ["torch.sparse_coo", "to_dense()"]),
        (np.ma.array(VALUES, mask=VALUES > 0.5), DataError, ["masked", "present"]),
        (None, DataError, ["NoneType"]),
    ],
)
def test_c_arrays_that_are_refused(values: Any, kind: type[CrossdistillError], facts: list[str]) -> None:
    with raises(kind, "audio", *facts):
        made(values)


def test_c_arrays_without_rows() -> None:
    with raises(DataError, "0 rows"):
        Dataset.from_arrays("none", {"x": np.zeros((0, 3))}, [])


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (np.uint8, ["uint8", "float32", "divide it by 255"]),
        (np.uint16, ["uint16", "float32", "divide it by 65535"]),
        (np.int32, ["int32", "float32", "scale it"]),
        (bool, ["bool", "convert it to float32"]),
    ],
)
def test_c_arrays_of_a_type_that_weights_are_not_of(kind: Any, facts: list[str], tmp_path: Path) -> None:
    pictures = np.ones((ROWS, 1, 6, 6), dtype=kind)
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)), reads="picture")
    recipe = Recipe(
        data=Dataset.from_arrays("own", {"picture": pictures}, IDS),
        student=network,
        stages=(Stage(method="supervised", epochs=1),),
    )
    with raises(RecipeError, "'picture'", *facts):
        run(recipe, tmp_path / "out")


def written(root: Path, **other: np.ndarray) -> AvMnistConfig:
    reference_arrays(root, **other)
    return AvMnistConfig(root=root, split="sample")


def test_c_reference_labels_in_a_row_and_in_a_column(tmp_path: Path) -> None:
    dataset = written(tmp_path, test_labels=(np.arange(40) % 10)[:, None].astype(">i4")).load()
    assert dataset.targets.tolist() == [*(np.arange(60) % 10), *(np.arange(40) % 10)]


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        ({"image/test_data": np.ones((40, 1, 28, 28))}, ["(60, 28, 28)", "(40, 1, 28, 28)", "dimensions"]),
        ({"test_labels": np.zeros((0,))}, ["test_data.npy", "40", "0 labels"]),
        ({"test_labels": np.eye(10)[np.arange(40) % 10]}, ["test_labels.npy", "400 labels"]),
        ({"test_labels": np.full(40, np.nan)}, ["test_labels.npy", "float64"]),
        ({"test_labels": np.full(40, 11)}, ["test_labels.npy", "11"]),
    ],
)
def test_c_reference_arrays_that_are_refused(other: dict[str, np.ndarray], facts: list[str], tmp_path: Path) -> None:
    with raises(DataError, *facts):
        written(tmp_path, **other).load()


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("split=sample", "'data.split'"),
        ("temperature=3", "'stages.kd.method.temperature'"),
        ("optimizer.learning_rate=0.1", "'stages.kd.optimizer.learning_rate'"),
    ],
)
def test_c_a_setting_of_a_deeper_level_is_suggested(setting: str, hint: str) -> None:
    with raises(RecipeError, hint):
        make("av-mnist/kd", [setting])
    with raises(RecipeError, hint):
        make("av-mnist/kd", []).overridden([setting])


def arguments() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    rows = 50
    inputs = {
        "image": (np.arange(rows * 8) % 17).astype(np.float32).reshape(rows, 2, 4),
        "audio": (np.arange(rows * 3) % 5).astype(np.uint8).reshape(rows, 3),
    }
    more = {
        "splits": {"train": np.arange(0, 30), "validation": np.arange(30, 40), "test": np.arange(40, 50)},
        "classes": ("a", "b", "c"),
        "present": {"audio": np.arange(rows) % 7 > 0},
        "labelled": np.arange(rows) % 2 > 0,
        "domain": ["s", "m"] * 25,
        "input_specs": {"image": InputSpec("image", (2, 4), {"value_range": [0, 1]}, {"mean": torch.arange(4.0)})},
    }
    return inputs, more


def test_d_fingerprints_are_what_they_were() -> None:
    """Keys of stages and banks that were written with them stay valid."""
    inputs, more = arguments()
    full = Dataset.from_arrays("golden", inputs, np.arange(50) % 3, **more)
    assert full.fingerprint == "85609620bf50053d0ae9e8a5a85ceeb5f49e6c0bc0fd853bd485bf8ae94fa9fb"
    plain = Dataset.from_arrays("golden", inputs, np.arange(50) % 3, splits=more["splits"])
    assert plain.fingerprint == "46a14d8bffd872532f0125f73db794ff24d80c2142009e83038631a267627550"
    digest = hashlib.sha256(json.dumps(["golden", ["0", "1", "2"], None]).encode())
    for name, tensor in [*sorted(plain.inputs.items()), *sorted(plain.splits.items()), ("targets", plain.targets)]:
        kind = "input " if name in plain.inputs else "split " if name in plain.splits else ""
        digest.update(f"{kind}{name} {tensor.dtype} {tuple(tensor.shape)};".encode() + tensor.numpy().tobytes())
    for name, shape in (("audio", [3]), ("image", [2, 4])):
        digest.update(json.dumps([name, "array", shape, {}], sort_keys=True).encode())
    assert plain.fingerprint == digest.hexdigest()


def test_d_one_pass_checks_and_hashes_and_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, more = arguments()
    told: list[tuple[int, int]] = []
    counted: list[int] = []
    isfinite = torch.Tensor.isfinite
    monkeypatch.setattr("crossdistill.data.content.BLOCK_BYTES", 10 * 32)
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: (counted.append(self.numel()), isfinite(self))[1])
    dataset = Dataset.from_arrays(
        "golden", inputs, np.arange(50) % 3, **more, progress=lambda _, done, total: told.append((done, total))
    )
    assert dataset.fingerprint == "85609620bf50053d0ae9e8a5a85ceeb5f49e6c0bc0fd853bd485bf8ae94fa9fb"
    assert counted == [1] * 5, "the sum of every block once, of the modality that has fractions"
    assert told == [(50, 100), *((50 + 10 * part, 100) for part in range(1, 6))]
    inputs["image"][23, 1, 1] = np.nan
    with raises(DataError, "'image'", "1 of 50", 23):
        Dataset.from_arrays("golden", inputs, np.arange(50) % 3, **more)


def test_d_a_dataset_in_a_few_lines() -> None:
    inputs, more = arguments()
    text = repr(Dataset.from_arrays("golden", inputs, np.arange(50) % 3, groups={"voice": np.arange(50)}, **more))
    assert len(text.splitlines()) <= 10
    assert max(map(len, text.splitlines())) <= 120
    for fact in (
        "'golden'",
        "50 rows",
        "image: float32 (2, 4)",
        "audio: uint8 (3,), absent in 8 rows",
        "'a', 'b', 'c'",
    ):
        assert fact in text
    for fact in ("train 30, validation 10, test 10", "voice 50", "15 of 30 training rows"):
        assert fact in text
    many = Dataset.from_arrays("many", {"x": np.ones((4000, 2))}, np.arange(4000) % 1000)
    assert "'7' and 992 more" in repr(many)
    assert len(repr(many).splitlines()) <= 6
