"""CIFAR-10 and CIFAR-100 from archives of the official layout, and their recipes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_archives import FOLDERS, Pickled, batch, files10, files100, write_archive
from facts import raises

from crossdistill import run
from crossdistill.compare.grid import Grid
from crossdistill.data import cache
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.picture_form import pictures_of
from crossdistill.data.pictures import Pictures
from crossdistill.data.plain_pickle import read_plain
from crossdistill.data.rendered import rendered
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.sets.cifar import Cifar10Config, Cifar100Config
from crossdistill.errors import DataError
from crossdistill.recipes import make

FILES10, FILES100 = files10(), files100()


@pytest.fixture(autouse=True, scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDISTILL_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_archive(folder, "cifar10", FILES10)
    write_archive(folder, "cifar100", FILES100)
    return folder


def test_rows_are_in_the_official_order(root: Path) -> None:
    data = Cifar10Config(root=root).load()
    source = data.inputs["image"]
    assert isinstance(source, Pictures)
    row = 0
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        values = read_plain(FILES10[name], name)
        for picture, label in zip(values[b"data"], values[b"labels"], strict=True):
            assert np.array_equal(source.values[row].numpy().reshape(-1), picture)
            assert data.targets[row] == label
            row += 1
    assert row == len(data) == 120
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.splits["test"].tolist() == list(range(100, 120))
    together = torch.cat([data.splits["train"], data.splits["validation"]]).sort().values
    assert together.tolist() == list(range(100))


def test_networks_read_pictures_with_the_published_normalisation(root: Path) -> None:
    data = Cifar100Config(root=root).load()
    read = data.batch(torch.tensor([7, 3])).inputs["image"]
    raw = read_plain(FILES100["train"], "train")[b"data"].reshape(-1, 3, 32, 32)[[7, 3]] / 255
    mean, deviation = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])
    wanted = (raw - mean[:, None, None]) / deviation[:, None, None]
    assert isinstance(read, torch.Tensor)
    assert torch.allclose(read, torch.from_numpy(wanted).float(), atol=1e-6)


def test_validation_is_drawn_by_class_and_seed(root: Path) -> None:
    config = Cifar10Config(root=root, validation=0.2)
    data, again, other = config.load(), config.load(), config.model_copy(update={"seed": 1}).load()
    rows = data.splits["validation"]
    assert torch.bincount(data.targets[rows], minlength=10).tolist() == [2] * 10
    assert rows.equal(again.splits["validation"])
    assert not rows.equal(other.splits["validation"])
    assert other.targets.equal(data.targets), "rows keep the official order"
    few = Cifar100Config(root=root, rows=100, validation=0.25).load()
    assert len(few) == 400
    assert {split: len(rows) for split, rows in few.splits.items()} == {"train": 75, "validation": 25, "test": 100}
    assert few.targets[few.splits["validation"]].unique().numel() == 25


def test_superclasses_are_targets_too(root: Path) -> None:
    coarse, fine = Cifar100Config(root=root, labels="coarse").load(), Cifar100Config(root=root).load()
    assert (len(coarse.classes), len(fine.classes)) == (20, 100)
    assert coarse.targets.equal(fine.targets // 5)
    assert coarse.fingerprint != fine.fingerprint


def test_the_unpacked_folder_is_the_same_data(root: Path, tmp_path: Path) -> None:
    folder, archive = FOLDERS["cifar100"]
    with tarfile.open(root / archive) as tar:
        tar.extractall(tmp_path, filter="data")
    whole = Cifar100Config(root=root).load()
    for config in (
        Cifar100Config(root=tmp_path),
        Cifar100Config(root=tmp_path / folder),
        Cifar100Config(archive=tmp_path / folder),
        Cifar100Config(archive=root / archive),
    ):
        assert config.load().fingerprint == whole.fingerprint
    assert cache.find("cifar100", Cifar100Config(root=root).recipe()) is not None


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    with raises(DataError, "cifar-10-python.tar.gz", "cifar-10-batches-py", tmp_path):
        Cifar10Config(root=tmp_path).load()
    with raises(DataError, "nothing.tar.gz"):
        Cifar10Config(archive=tmp_path / "nothing.tar.gz").load()
    without = {name: content for name, content in FILES10.items() if name != "data_batch_4"}
    archive = write_archive(tmp_path, "cifar10", without)
    with raises(DataError, archive, "cifar-10-batches-py/data_batch_4"):
        Cifar10Config(root=tmp_path).load()
    with raises(DataError, "cifar-10-batches-py/data_batch_1"):
        Cifar10Config(archive=root / "cifar-100-python.tar.gz").load()


@pytest.mark.parametrize("kept_bytes", [0, 10, 5000, -60000])
def test_a_truncated_archive_is_refused(root: Path, tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes((root / path.name).read_bytes()[:kept_bytes])
    with raises(DataError, path, "truncated"):
        Cifar10Config(root=tmp_path).load()


@pytest.mark.parametrize("name", ["../data_batch_1", "/data_batch_1", "x/../../y", "C:/data_batch_1", "a\\..\\..\\b"])
def test_an_archive_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with raises(DataError, repr(name)):
        Cifar10Config(root=tmp_path).load()


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with raises(DataError, "cifar-10-batches-py/data_batch_1"):
        Cifar10Config(root=tmp_path).load()


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("data_batch_2", FILES10["data_batch_2"][:-4000], ["truncated"]),
        ("data_batch_2", batch(20, "fine_labels", [0] * 20, 0), ["'labels'", "fine_labels"]),
        ("data_batch_2", batch(20, "labels", [11] * 20, 0), [11, 10]),
        ("data_batch_2", Pickled().of({"labels": [1, 2], "data": np.zeros((2, 10), np.uint8)}), ["(2, 10)", 3072]),
        ("data_batch_2", Pickled().of({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}), ["(1,)", 2]),
        ("data_batch_2", Pickled().of({"labels": [1], "data": "text"}), ["bytes"]),
        ("batches.meta", Pickled().of({"names": ["a"]}), ["'label_names'", "names"]),
        ("batches.meta", Pickled().of({"label_names": 3}), ["label_names", "int"]),
    ],
)
def test_a_foreign_or_truncated_file_is_refused(tmp_path: Path, name: str, content: bytes, facts: list[object]) -> None:
    write_archive(tmp_path, "cifar10", FILES10 | {name: content})
    with raises(DataError, name, *facts):
        Cifar10Config(root=tmp_path).load()


def test_a_recipe_is_the_published_one() -> None:
    recipe = make("cifar100/kd", [])
    teacher, student = recipe.stages
    for stage in (teacher, student):
        optimizer = stage.optimizer
        assert (stage.epochs, stage.batch_size) == (240, 64)
        assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.05, 0.9)
        assert (optimizer.weight_decay, optimizer.milestones, optimizer.gamma) == (5e-4, (150, 180, 210), 0.1)
        assert not optimizer.arguments
        assert not optimizer.no_decay_on_norms_and_biases
    assert (student.method.temperature, student.method.fixed) == (4.0, (0.1, 0.9))  # type: ignore[attr-defined]
    assert list(recipe.teachers) == ["cnn"]
    assert recipe.data.augmentation.model_dump(exclude_defaults=True) == {
        "inputs": {"image": {"crop": 4, "flip": True}}
    }
    shorter = make("cifar10/dot", ["epochs=48", "learning_rate=0.01"])
    assert shorter.stages[0].optimizer.milestones == (30, 36, 42)
    dot = shorter.stages[1].optimizer
    assert (dot.learning_rate, dot.momentum, dot.weight_decay, dot.milestones) == (0.01, 0.0, 0.0, (30, 36, 42))
    crd = make("cifar100/crd", []).stages[-1].method
    assert (crd.fixed, crd.negatives) == ((1.0, 0.8), 16384)  # type: ignore[attr-defined]


def test_teachers_by_name_join_or_replace_the_one_of_the_recipe() -> None:
    both = make(
        "cifar100/kd", ["student=cifar-resnet14", "teachers.cnn=cifar-resnet56", "teachers.big.model=cifar-resnet110"]
    )
    assert {name: net.model for name, net in both.teachers.items()} == {
        "cnn": "cifar-resnet56",
        "big": "cifar-resnet110",
    }
    assert both.student.model == "cifar-resnet14"
    assert [stage.name for stage in both.stages] == ["supervised-cnn", "supervised-big", "kd"]
    assert list(make("cifar100/kd", ["teachers.cnn=null", "teachers.big=cifar-resnet56"]).teachers) == ["big"]
    weights = make("cifar100/kd", ["teachers.cnn.weights=w.safetensors"]).teachers["cnn"]
    assert weights.model == make("cifar100/kd", []).teachers["cnn"].model


def test_a_first_run(root: Path, tmp_path: Path) -> None:
    settings = [f"data.root={root}", "teachers.cnn=cifar-resnet8", "student=cifar-resnet8"]
    results = run(make("cifar10/kd", settings).tiny(), tmp_path / "out")
    assert {row.method for row in results.rows} >= {"chance", "teacher:cnn", "kd"}


def test_a_rendering_is_made_of_the_augmented_picture(root: Path) -> None:
    views = Variations(inputs={"image": Variation(crop=4, flip=True, rand_augment=1)}, views=4)
    data = Cifar10Config(root=root, augmentation=views).load()
    rendering = PictureRendering(size=(48, 48), mean=(0.5,), deviation=(0.25,))
    both = rendered(data, {"image@clip": rendering}, "clip")
    rows, view = data.splits["train"][:6], torch.arange(6) % 5
    batch = both.batch(rows, view=view)
    spec, seen = data.input_specs["image"], batch.inputs["image"]
    assert isinstance(seen, torch.Tensor)
    wanted = rendering.apply(pictures_of(seen, spec) * 255)
    assert torch.allclose(batch.inputs["image@clip"], wanted, atol=1e-5)  # type: ignore[arg-type]
    plain = both.batch(rows).inputs["image@clip"]
    source = data.inputs["image"]
    assert isinstance(source, Pictures)
    assert torch.allclose(plain, rendering.apply(source.values[rows]), atol=1e-5)  # type: ignore[arg-type]


def test_a_comparison_takes_its_networks_by_settings(root: Path) -> None:
    settings = [f"data.root={root}", "student=cifar-resnet8", "teachers.cnn=cifar-resnet14", "epochs=4"]
    grid = Grid.parse("cifar10", methods="supervised,kd", seeds=1, settings=settings, tiny=True)
    recipes = [cell.recipe() for cell in grid.cells()]
    assert {recipe.student.model_dump()["model"] for recipe in recipes} == {"cifar-resnet8"}
    assert recipes[-1].teachers["cnn"].model_dump()["model"] == "cifar-resnet14"
    assert grid.students == ("image",)
    plain = Grid.parse("cifar100", methods="kd", seeds=1).cells()[0].recipe()
    assert plain.student.model_dump()["model"] == "cifar-resnet8x4"
