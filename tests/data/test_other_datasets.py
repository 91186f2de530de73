import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import toy_recipe
from facts import raises, states
from torch import Tensor

from crossdistill import Live, Network, Signal, load_student, run
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.row_source import costliest
from crossdistill.data.variable_length import Cropped, Padded
from crossdistill.data.workers import end_workers
from crossdistill.errors import DataError, RecipeError, SettingError, ShapeError
from crossdistill.planning import sources
from crossdistill.planning.plan import prepare
from crossdistill.stage import Stage

ROWS = 60


@pytest.fixture(autouse=True)
def _no_workers_left() -> object:
    yield
    end_workers()


class Pairs:
    """Tuples (image, sound of its own length, class), as a torch Dataset gives them."""

    def __init__(self, rows: int = ROWS, broken: int | None = None, noise: float = 0.0) -> None:
        self.rows, self.broken, self.noise, self.read = rows, broken, noise, 0

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, np.ndarray, int]:
        self.read += 1
        if row == self.broken:
            raise OSError("truncated file")
        image = torch.full((2, 4), float(row)) + self.noise * torch.randn(2, 4)
        return image, np.arange(3 + row % 5, dtype=np.float64) + 1, row % 3


COLUMNS = {"image": 0, "sound": 1, "target": 2}


def pairs(**more: object) -> Dataset:
    settings = {"columns": COLUMNS, "lengths": {"sound": Padded()}, "workers": 0} | more
    return Dataset.from_torch("pairs", settings.pop("dataset", Pairs()), **settings)


def test_a_torch_dataset_is_read_when_a_batch_needs_it() -> None:
    dataset = pairs()
    assert dataset.targets.tolist() == [row % 3 for row in range(ROWS)]
    batch = dataset.batch(torch.tensor([7, 4]))
    assert batch.inputs["image"].equal(torch.stack([torch.full((2, 4), 7.0), torch.full((2, 4), 4.0)]))
    sound = batch.inputs["sound"]
    assert sound["lengths"].tolist() == [5, 7]
    assert sound["values"].tolist() == [[1, 2, 3, 4, 5, 0, 0], [1, 2, 3, 4, 5, 6, 7]]
    assert dataset.inputs["sound"].shape == (ROWS, 7)
    assert dataset.inputs["sound"].lengths[:3].tolist() == [3, 4, 5]
    source = pairs(dataset=Pairs()).inputs["image"]
    assert source.fingerprint == dataset.inputs["image"].fingerprint
    before = dataset.inputs["image"].items.dataset.read
    dataset.batch(torch.tensor([9]))
    assert dataset.inputs["image"].items.dataset.read == before + 1, "one item for both modalities"


def test_the_first_pass_by_workers_finds_the_same() -> None:
    one, other = pairs(dataset=Pairs(270)), pairs(dataset=Pairs(270), workers=2)
    assert one.fingerprint == other.fingerprint
    assert pairs(dataset=Pairs(269)).fingerprint != one.fingerprint


def test_with_a_key_and_targets_nothing_is_read_at_the_start() -> None:
    dataset = Pairs()
    columns = {"image": 0}
    Dataset.from_torch("pairs", dataset, columns, targets=[0, 1, 2] * 20, key="v1")
    assert dataset.read < 5


def test_a_collate_function_makes_batches() -> None:
    def collate(items: list[tuple[Tensor, np.ndarray, int]]) -> dict[str, Tensor]:
        return {"doubled": 2 * torch.stack([item[0] for item in items]), "y": torch.tensor([i[2] for i in items])}

    dataset = pairs(collate=collate, columns={"image": "doubled", "target": "y"}, lengths=None)
    assert dataset.batch(torch.tensor([3])).inputs["image"][0, 0, 0] == 6
    assert dataset.targets[:4].tolist() == [0, 1, 2, 0]


def test_broken_unequal_and_random_items_are_named() -> None:
    with raises(DataError, "pairs", "row 41", "truncated file"):
        pairs(dataset=Pairs(broken=41))
    with raises(DataError, "image", "deterministic=False", "augmentation"):
        pairs(dataset=Pairs(noise=1.0))
    with raises(SettingError, "deterministic=False", "key"):
        pairs(dataset=Pairs(noise=1.0), deterministic=False)
    assert not pairs(dataset=Pairs(noise=1.0), deterministic=False, key="v1").inputs["image"].deterministic
    with raises(DataError, "sound", "3", "4", "Padded"):
        pairs(lengths=None)
    with raises(SettingError, "columns", "image"):
        pairs(columns=None)
    with raises(SettingError, "imag", "image"):
        pairs(columns={"image": "imag"})
    with raises(DataError, "generator"):
        Dataset.from_torch("x", (row for row in range(3)))


def test_crops_are_functions_of_seed_and_row() -> None:
    values = [torch.arange(float(length)) for length in (2, 9, 30)]
    rows = torch.tensor([0, 1, 2])
    for fill, end in (("zeros", [0.0, 1.0, 0.0, 0.0]), ("edge", [0.0, 1.0, 1.0, 1.0]), ("mean", [0.0, 1.0, 0.5, 0.5])):
        cropped = Cropped(length=4, fill=fill)
        assert cropped.batch(values[:1], rows[:1])[0].tolist() == end
    source = Cropped(length=4).rows(values)
    assert source.fetch(rows)[2].equal(source.fetch(torch.tensor([2]))[0])
    starts = {float(Cropped(length=4, seed=seed).rows(values).fetch(torch.tensor([2]))[0, 0]) for seed in range(9)}
    assert len(starts) > 3
    assert Cropped(length=4, place="middle").rows(values).fetch(rows)[2].tolist() == [13, 14, 15, 16]
    masked = Padded(mask=True, multiple=4).rows(values[:2]).fetch(torch.tensor([0, 1]))
    assert masked["values"].shape == (2, 12)
    assert masked["mask"].sum(1).tolist() == [2, 9]


def test_unequal_arrays_are_told_with_the_cure() -> None:
    values = [np.ones((length, 2), np.float32) for length in [3, 5, 9] * 4]
    with raises(ShapeError, "sound", "3", "5", "9", "Padded", "Cropped"):
        Dataset.from_arrays("own", {"sound": values}, [0, 1, 2] * 4)
    dataset = Dataset.from_arrays("own", {"sound": Padded().rows(values)}, [0, 1, 2] * 4)
    assert dataset.batch(torch.tensor([0, 1])).inputs["sound"]["values"].shape == (2, 5, 2)
    with raises(ShapeError, "row 1", "(5, 3)"):
        Padded().rows([np.ones((4, 2)), np.ones((5, 3))])


class Recurrent(torch.nn.Module):
    """Classes of sounds by the mean of their values, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 3)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(values.sum(1, keepdim=True) / lengths[:, None])


def test_lengths_reach_a_network_that_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [Network(Recurrent(), ("sound",)) for _ in range(2)]
    stage = Stage(method="kd", epochs=1, batch_size=16, length_buckets=2)
    recipe = toy_recipe(stage, data=pairs()).model_copy(
        update={"student": networks[0], "teachers": {"big": networks[1]}, "student_name": "small"}
    )
    run(recipe, tmp_path / "run")
    student = load_student(tmp_path / "run", recipe.student)
    sound = recipe.data.batch(torch.tensor([0, 3])).inputs["sound"]
    assert student.logits({"sound": sound}).shape == (2, 3)
    assert student.inputs["sound"].shape == (7,)


class Steps(torch.nn.Module):
    """A layer for each value, whose output is as long as the row, and the mean of them."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.last = torch.nn.Linear(1, 4), torch.nn.Linear(4, 3)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return self.last(self.each(values[..., None]).sum(1) / lengths[:, None])


def test_outputs_whose_shape_follows_the_lengths_are_not_banked() -> None:
    dataset = pairs()
    network = Network(Steps(), ("sound",), ("each", "last"))
    network.probe(dataset.example())
    teacher = Live("t", network)
    states(sources._unbankable(teacher, Signal.feature("each"), dataset), "sound", "lengths")
    assert sources._unbankable(teacher, Signal.feature("last"), dataset) is None
    assert sources._unbankable(teacher, Signal.LOGITS, dataset) is None


def test_memory_is_measured_with_the_longest_rows() -> None:
    rows = torch.tensor([0, 4, 1, 9])
    assert costliest(pairs().inputs, rows, 2).tolist() == [1, 3]
    assert costliest(pairs(lengths={"sound": Cropped(length=4)}).inputs, rows, 2).tolist() == [0, 1]


def test_length_buckets_need_lengths() -> None:
    recipe = toy_recipe(Stage(method="kd", epochs=1, length_buckets=2))
    with raises(RecipeError, "length_buckets", "first", "kd"):
        prepare(recipe, recipe.data, torch.device("cpu"))


def _shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _shards(folder: Path, rows: int = 40) -> Path:
    for number in range(2):
        samples = {}
        for row in range(number * rows // 2, (number + 1) * rows // 2):
            samples[f"a/{row:04d}"] = {"npy": _npy(np.full(3, row, np.float32)), "cls": str(row % 4).encode()}
            if row % 2:
                samples[f"a/{row:04d}"]["depth.npy"] = _npy(np.full((2, 2), row, np.float32))
        _shard(folder / f"part-{number}.tar", samples)
    return folder


def test_tar_shards_are_read_by_row(tmp_path: Path) -> None:
    columns = {"x": "npy", "depth": "depth.npy", "target": "cls"}
    dataset = Dataset.from_shards("shards", _shards(tmp_path) / "*.tar", columns, workers=0)
    assert len(dataset) == 40
    assert dataset.classes == ("0", "1", "2", "3")
    batch = dataset.batch(torch.tensor([39, 2]))
    assert batch.inputs["x"][:, 0].tolist() == [39, 2]
    assert batch.inputs["depth"][:, 0, 0].tolist() == [39, 0]
    assert batch.present["depth"].tolist() == [True, False]
    again = Dataset.from_shards("shards", sorted(tmp_path.glob("*.tar")), columns, workers=0)
    assert again.fingerprint == dataset.fingerprint
    assert dataset.inputs["x"].name_of(3).startswith("part-0.tar: a/0003")
    with raises(SettingError, "x", "npy"):
        Dataset.from_shards("shards", tmp_path, {"x": "npx"})
    (tmp_path / "part-2.tar").write_bytes(b"no tar at all" * 100)
    with raises(DataError, "part-2.tar"):
        Dataset.from_shards("shards", tmp_path)


def test_pictures_in_shards_are_rendered(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    samples = {}
    for row in range(12):
        buffer = io.BytesIO()
        image.fromarray(np.full((8 + row, 10, 3), 20 * row, np.uint8)).save(buffer, "png")
        samples[f"{row:03d}"] = {"png": buffer.getvalue(), "json": json.dumps({"k": row}).encode(), "cls": b"1"}
    _shard(tmp_path / "a.tar", samples)
    settings = {"renderings": {"image": PictureRendering(size=(6, 6))}, "classes": ("0", "1"), "workers": 0}
    dataset = Dataset.from_shards("pictures", tmp_path, {"image": "png", "target": "cls"}, **settings)
    assert dataset.batch(torch.tensor([5])).inputs["image"].shape == (1, 3, 6, 6)
    assert dataset.input_specs["image"].kind == "image"
    source = dataset.inputs["image"]
    large = source.rendered(PictureRendering(size=(12, 12)))
    assert large.fetch(torch.tensor([5])).shape == (1, 3, 12, 12)
    assert len({source.fingerprint, large.fingerprint, source.rendered(source.rendering).fingerprint}) == 2
    with raises(ShapeError, "renderings", "(3, 9, 10)"):
        Dataset.from_shards("pictures", tmp_path, {"image": "png"}, workers=0).batch(torch.arange(3))
    states(repr(dataset), "ItemRows")


def test_hugging_face_datasets_are_read_by_row(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"x": [[float(row), 1.0] for row in range(30)], "label": [row % 2 for row in range(30)]}
    features = datasets.Features(
        {"x": datasets.Sequence(datasets.Value("float32")), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    dataset = Dataset.from_huggingface("hf", made, workers=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.batch(torch.tensor([4, 1])).inputs["x"].tolist() == [[4.0, 1.0], [1.0, 1.0]]
    assert Dataset.from_huggingface("hf", made.select(range(29, -1, -1))).fingerprint != dataset.fingerprint
    made.save_to_disk(str(tmp_path / "saved"))
    saved = Dataset.from_huggingface("hf", tmp_path / "saved", workers=0)
    assert saved.batch(torch.tensor([4])).inputs["x"].tolist() == [[4.0, 1.0]]
    parts = made.train_test_split(0.5, seed=0)
    with raises(DataError, "train", "test", "validation"):
        Dataset.from_huggingface("hf", parts)
