"""Public checkpoints of teachers: files and archives of the same layout, written here; strict, safe, named by text."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossdistill.backends.names import with_file
from crossdistill.data.dataset import Dataset
from crossdistill.errors import DataError, RecipeError, ShapeError
from crossdistill.models import build_network
from crossdistill.models.checkpoint import keeps_weights, load_checkpoint, read_checkpoint
from crossdistill.planning.plan import prepare
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes import make
from crossdistill.recipes.own_data import fitted
from crossdistill.training.one_call import named
from tests.facts import raises, states

RESNET8 = "cifar-resnet8"


def weights(name: str = RESNET8, classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_network(name, classes=classes).module.state_dict()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def published(state: dict[str, Tensor]) -> bytes:
    """A file as RepDistiller writes it: the epoch, the accuracy and the optimizer beside the weights."""
    return saved({"epoch": 240, "model": state, "accuracy": torch.tensor(72.3), "optimizer": {"state": {}}})


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ckpt_epoch_240.pth"
    path.write_bytes(published(weights()))
    return path


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    folders = {"resnet8_vanilla": RESNET8, "wrn_16_1_vanilla": "cifar-wrn-16-1", "ShuffleV2_vanilla": "cifar-shufflev2"}
    files = {f"save/models/{folder}/ckpt_epoch_240.pth": published(weights(model)) for folder, model in folders.items()}
    return archive(tmp_path / "cifar_teachers.tar", {**files, "save/models/resnet8_vanilla/log.txt": b"..."})


def loaded(path: Path, model: str = RESNET8) -> dict[str, Tensor]:
    module = build_network(model, classes=3).module
    load_checkpoint(module, path, model)
    return module.state_dict()


@pytest.mark.parametrize("form", ["key", "alone", "without counters"])
def test_a_file_gives_the_network_its_weights(form: str, tmp_path: Path) -> None:
    state = weights()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    content = {"key": published(state), "alone": saved(state), "without counters": saved(old)}[form]
    (tmp_path / "file.pth").write_bytes(content)
    assert all(torch.equal(value, state[name]) for name, value in loaded(tmp_path / "file.pth").items())


@pytest.mark.parametrize("model", [RESNET8, "cifar-wrn-16-1", "cifar-shufflev2"])
def test_an_archive_has_a_folder_for_each_network(model: str, tar: Path) -> None:
    state = weights(model)
    assert all(torch.equal(value, state[name]) for name, value in loaded(tar, model).items())


def test_an_archive_without_the_network_says_which_it_has(tar: Path) -> None:
    with raises(DataError, tar.name, "cifar-wrn-40-2", "cifar-wrn-16-1"):
        read_checkpoint(tar, "cifar-wrn-40-2")


@pytest.mark.parametrize("name", ["../resnet8/ckpt_epoch_240.pth", "/etc/resnet8/ckpt_epoch_240.pth", "a/../../b.pth"])
def test_an_archive_with_a_path_outside_is_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "bad.tar", {"resnet8_vanilla/ckpt_epoch_240.pth": published(weights()), name: b"x"})
    with raises(DataError, "bad.tar", name):
        read_checkpoint(path, RESNET8)


def test_links_of_an_archive_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        entry = tarfile.TarInfo("resnet8_vanilla/ckpt_epoch_240.pth")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with raises(DataError, "links.tar", RESNET8):
        read_checkpoint(tmp_path / "links.tar", RESNET8)


class Dangerous:
    """An object whose pickle would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code of a checkpoint has run",))


def test_files_that_are_no_checkpoints_are_refused(file: Path, tar: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    for content, fact in (
        (saved({"model": Dangerous()}), "damaged"),
        (saved({"state": 1}), "state"),
        (saved([1]), "list"),
        (file.read_bytes()[:5000], "damaged"),
        (b"", "other.pth"),
    ):
        other.write_bytes(content)
        with raises(DataError, "other.pth", fact):
            read_checkpoint(other, RESNET8)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[:20_000])
    with raises(DataError, "cut.tar"):
        read_checkpoint(cut, RESNET8)
    with raises(DataError, "none.pth"):
        read_checkpoint(tmp_path / "none.pth", RESNET8)


def test_keys_that_do_not_fit_are_named(file: Path, tmp_path: Path) -> None:
    with raises(ShapeError, file.name, "cifar-resnet14", "layer1.1.conv1.weight"):
        load_checkpoint(build_network("cifar-resnet14", classes=3).module, file, "cifar-resnet14")
    with raises(ShapeError, "fc.weight", "(3, 64)", "(5, 64)", "classes"):
        load_checkpoint(build_network(RESNET8, classes=5).module, file, RESNET8)
    state = weights()
    (tmp_path / "more.pth").write_bytes(published({**state, "module.fc.weight": state["fc.weight"]}))
    with raises(ShapeError, "unknown", "module.fc.weight"):
        load_checkpoint(build_network(RESNET8, classes=3).module, tmp_path / "more.pth", RESNET8)


def test_a_text_names_a_network_and_its_file() -> None:
    config = NetworkConfig.model_validate("cifar-resnet32x4:teachers/ckpt_epoch_240.pth")
    assert (config.model, config.weights) == ("cifar-resnet32x4", Path("teachers/ckpt_epoch_240.pth"))
    assert keeps_weights(config.weights, config.tune)
    assert not keeps_weights(Path("w.pth"), "all")
    assert not keeps_weights(Path("w.safetensors"), None)
    assert not keeps_weights(None, None)
    assert with_file("timm:resnet18") == ("timm:resnet18", None)
    assert with_file("C:/data") == ("C:/data", None)
    with raises(ValueError, "a.pth", "b.pth"):
        NetworkConfig.model_validate({"model": f"{RESNET8}:a.pth", "weights": "b.pth"})
    with raises(ValueError, "cifar-resnet9:x.pth"):
        NetworkConfig.model_validate("cifar-resnet9:x.pth")
    assert list(named([f"{RESNET8}:teachers/ckpt_epoch_240.pth"])) == [RESNET8]


def pictures() -> Dataset:
    return Dataset.from_arrays("pictures", {"image": torch.rand(60, 3, 8, 8)}, torch.arange(60) % 3)


def test_a_named_file_is_a_frozen_teacher(file: Path) -> None:
    dataset = pictures()
    config = fitted(f"{RESNET8}:{file}", "image", dataset.input_specs["image"])
    assert (config.model, config.weights, config.options["channels"]) == (RESNET8, file, 3)
    teacher = {"model": RESNET8, "weights": file}
    stages = [
        {"name": "supervised-cnn", "method": "supervised", "learner": "cnn", "epochs": 1},
        {"name": "kd", "method": "kd", "teachers": ["cnn"], "epochs": 1},
    ]
    parts = {"data": dataset, "student": RESNET8, "stages": stages}
    recipe = Recipe.model_validate({**parts, "teachers": {"cnn": teacher}})
    plan = prepare(recipe, dataset, torch.device("cpu"))
    assert [job.stage.name for job in plan.jobs] == ["kd"]
    states(" ".join(plan.notes), "supervised-cnn", "cnn")
    state = plan.members["cnn"].module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in weights(classes=len(dataset.classes)).items())
    trained = Recipe.model_validate({**parts, "teachers": {"cnn": {**teacher, "tune": "all"}}})
    assert len(prepare(trained, dataset, torch.device("cpu")).jobs) == 2
    wide = {"cnn": {"model": "cifar-resnet8x4", "weights": file}}
    with raises(RecipeError, "teachers.cnn", "cifar-resnet8x4", "conv1.weight"):
        prepare(Recipe.model_validate({**parts, "teachers": wide}), dataset, torch.device("cpu"))


def test_recipes_leave_out_the_training_of_a_named_file(file: Path) -> None:
    with_weights = make("cifar100/kd", [f"teachers.cnn=cifar-resnet32x4:{file}"])
    assert [stage.name for stage in with_weights.stages] == ["kd"]
    teacher = with_weights.teachers["cnn"]
    assert isinstance(teacher, NetworkConfig)
    assert (teacher.model, teacher.weights) == ("cifar-resnet32x4", file)
    assert len(make("cifar100/kd", []).stages) == 2
