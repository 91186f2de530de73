"""A student's folder answers as it was written, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises
from safetensors.torch import load_file, save_file
from torch import nn

from crossdistill import Dataset, InputSpec, Network, NetworkConfig, Recipe, Stage
from crossdistill.errors import DataError, NonFiniteError, RunError
from crossdistill.methods import KD
from crossdistill.run_folder.student_files import FORMAT, sealed
from crossdistill.runtime.hashing import file_hash
from crossdistill.student import load_student, save_student

MODEL = NetworkConfig(model="small-image", reads=("picture",))
FILES = ("model.safetensors", "preparation.safetensors")


def dataset(seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((20, 1, 8, 8)).astype(np.float32)
    fitted = {"mean": torch.from_numpy(rng.random(64, np.float32)), "basis": torch.eye(64)[:10]}
    options = {"normalisation": {"kind": "mean and standard deviation", "mean": 0.3, "deviation": 0.2}}
    spec = InputSpec("image", (1, 8, 8), options, fitted)
    return Dataset.from_arrays("toy", {"picture": values}, np.arange(20) % 3, input_specs={"picture": spec})


def network(seed: int = 2) -> Network:
    torch.manual_seed(seed)
    return MODEL.build(3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's folder that tests copy."""
    path = tmp_path_factory.mktemp("written") / "student"
    save_student(path, network(), MODEL, dataset(), "card")
    return path


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A student's folder that tests may harm."""
    return Path(shutil.copytree(written, tmp_path / "student"))


def resealed(folder: Path, change: Callable[[dict[str, Any]], None] = lambda config: None) -> None:
    """The config as a person would forge it: with the hashes of the files that are there now."""
    config = json.loads((folder / "config.json").read_text())
    config["files"] = {name: file_hash(folder / name) for name in FILES if (folder / name).is_file()}
    change(config)
    (folder / "config.json").write_text(sealed(config))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)


def other(folder: Path, name: str) -> None:
    """A file of another student, of the same shapes."""
    another = folder.parent / "other"
    save_student(another, network(3), MODEL, dataset(1), "card")
    shutil.copy(another / name, folder / name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flipped", "missing", "another student's"])
def test_a6_a_file_that_is_not_what_was_written_is_refused(folder: Path, name: str, harm: str) -> None:
    if harm == "missing":
        (folder / name).unlink()
    elif harm == "flipped":
        flip(folder / name)
    else:
        other(folder, name)
    with raises(DataError, name):
        load_student(folder)


def test_a6_a_preparation_that_is_none_of_this_students_is_refused(folder: Path) -> None:
    (folder / "preparation.safetensors").unlink()
    resealed(folder)
    load_student(folder)
    save_file({"picture/mean": torch.zeros(64)}, folder / "preparation.safetensors")
    with raises(DataError, "preparation.safetensors"):
        load_student(folder)


@pytest.mark.parametrize("found", [99, 1, "2", None, True, 2.0])
def test_a6_another_format_is_refused_with_both_numbers(folder: Path, found: object) -> None:
    resealed(folder, lambda config: config.update(format=found))
    with raises(RunError, f"format {found!r}", f"format {FORMAT}"):
        load_student(folder)


def test_a6_an_edited_config_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["classes"].reverse()
    (folder / "config.json").write_text(json.dumps(config))
    with raises(RunError, "config.json", "checksum"):
        load_student(folder)


def test_a6_the_model_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("What I think of it.")
    load_student(folder)
    (folder / "README.md").unlink()
    load_student(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a6_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    folder: Path, tmp_path: Path, value: float
) -> None:
    harmed = network()
    with torch.no_grad():
        harmed.module.fc1.weight[3, 4] = value
    with raises(NonFiniteError, "'fc1.weight'", "1 of 12,288"):
        save_student(tmp_path / "other", harmed, MODEL, dataset(), "card")
    assert not (tmp_path / "other").exists()
    weights = load_file(folder / "model.safetensors")
    weights["conv1.bias"][0] = value
    save_file(weights, folder / "model.safetensors")
    resealed(folder)
    with raises(DataError, "model.safetensors", "'conv1.bias'", "1 of 16"):
        load_student(folder)


def test_a6_a_preparation_that_is_not_finite_is_refused(folder: Path) -> None:
    fitted = load_file(folder / "preparation.safetensors")
    fitted["picture/mean"][0] = float("nan")
    save_file(fitted, folder / "preparation.safetensors")
    resealed(folder)
    with raises(DataError, "preparation.safetensors", "'picture/mean'"):
        load_student(folder)


class Masked(nn.Module):
    """A network with a mask of -Inf among its buffers, as attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.layer(picture.flatten(1))


def test_a6_a_mask_of_minus_infinity_is_no_damage(tmp_path: Path) -> None:
    made = Network(Masked(), "picture")
    save_student(tmp_path / "student", made, made, dataset(), "card")
    assert torch.equal(load_student(tmp_path / "student", module=Masked()).network.module.mask, made.module.mask)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a6_the_command_line_refuses_it_too(folder: Path, command: str, crossdistill: Callable[..., Any]) -> None:
    flip(folder / "model.safetensors")
    plain = {"name": "av-digits"}
    recipe = Recipe(data=plain, student=NetworkConfig(model="small-image"), stages=[Stage(method=KD(), epochs=1)])
    (folder.parent / "recipe.yaml").write_text(recipe.to_yaml())
    said = crossdistill(command, folder.parent, *(["x.png"] if command == "predict" else []))
    assert "model.safetensors: damaged" in said.complaint()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"mean": np.float32(3)}}, "numpy.float32"),
        ({"options": {"how": torch.float32}}, "torch.dtype"),
        ({"options": {"mean": float("nan")}}, "nan"),
        ({"options": {"a": {1: 2}}}, "keys"),
        ({"kind": "k" * 201}, "200"),
        ({"parameters": {"a/b": torch.ones(2)}}, "a/b"),
    ],
)
def test_a6_what_could_not_be_loaded_again_is_refused_before_training(changes: dict[str, Any], said: str) -> None:
    spec = replace(InputSpec("array", (2,)), **changes)
    with raises(DataError, said):
        Dataset.from_arrays("toy", {"first": np.zeros((20, 2))}, np.arange(20) % 2, input_specs={"first": spec})


def test_a6_class_names_of_any_length_are_refused_before_training() -> None:
    with raises(DataError, 1001):
        Dataset.from_arrays("toy", {"first": np.zeros((20, 2))}, np.arange(20) % 2, classes=["a" * 1001, "b"])
