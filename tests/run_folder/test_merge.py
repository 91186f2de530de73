"""Merging of folders of this library's students."""

from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises

from crossdistill import Dataset, NetworkConfig
from crossdistill.errors import DataError, RunError, SettingError, ShapeError
from crossdistill.run_folder.merge import merge_folders
from crossdistill.run_folder.student_card import model_card, without_results
from crossdistill.run_folder.student_files import CARD
from crossdistill.runtime.tensor_file import read_weights, write_tensors
from crossdistill.student import load_student, save_student


@pytest.fixture
def parents(tmp_path: Path) -> list[Path]:
    """Two students of one shape, and one of another."""
    data = Dataset.from_arrays("toy", {"x": np.random.default_rng(0).normal(size=(20, 6))}, np.arange(20) % 3)
    folders = []
    for seed, hidden in ((0, 8), (1, 8), (2, 9)):
        torch.manual_seed(seed)
        config = NetworkConfig(model="mlp", options={"features": 6, "width": hidden}, reads=("x",))
        folders.append(tmp_path / f"{seed}" / "student")
        folders[-1].parent.mkdir()
        save_student(folders[-1], config.build(3), config, data, "card")
    return folders


def test_students_of_this_library_are_merged_and_sealed_again(tmp_path: Path, parents: list[Path]) -> None:
    first, second = (load_student(path).network.module.state_dict() for path in parents[:2])
    # A run's folder stands for its student.
    merged = load_student(merge_folders([parents[0].parent, parents[1]], [0.5, 0.5], tmp_path / "merged"))
    for key, value in merged.network.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[key] + second[key]) / 2)


def test_the_card_of_merged_students_has_no_figures_of_the_first(tmp_path: Path, parents: list[Path]) -> None:
    data = Dataset.from_arrays("toy", {"x": np.zeros((6, 6))}, np.arange(6) % 3, about="Of no meaning.")
    (parents[0] / CARD).write_text(model_card(data, "A title", "| accuracy |\n|--:|\n| 0.987 |\n", ["mm"], 5))
    card = (merge_folders(parents[:2], [0.5, 0.5], tmp_path / "merged") / CARD).read_text()
    for fact in ("linear, weights 0.5, 0.5", "# A title", "was not measured", "Of no meaning.", "## Use"):
        assert fact in card
    for wrong in ("0.987", "accuracy", "Test split"):
        assert wrong not in card
    # A card of another library is as it was.
    assert without_results("# Mine\n\n| 0.5 |\n") == "# Mine\n\n| 0.5 |\n"


def test_folders_that_cannot_be_merged_are_refused(tmp_path: Path, parents: list[Path]) -> None:
    with raises(ShapeError, 8, 9):
        merge_folders([parents[0], parents[2]], [0.5, 0.5], tmp_path / "merged")
    with raises(RunError, "model.safetensors"):
        merge_folders([parents[0], tmp_path], [0.5, 0.5], tmp_path / "merged")
    np.save(tmp_path / "x.npy", np.zeros(3))
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("transformers")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 16_000)
    with raises(SettingError, "HuBERT"):
        merge_folders(parents[:2], [0.5, 0.5], tmp_path / "merged", permute=tmp_path)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("as_base", [False, True])
def test_weights_that_are_no_numbers_are_not_merged(tmp_path: Path, parents: list[Path], as_base: bool) -> None:
    file = parents[1] / "model.safetensors"
    weights = read_weights(file)
    name = next(key for key, value in weights.items() if value.ndim == 2)
    weights[name][0, :2] = torch.tensor([float("nan"), float("-inf")])
    write_tensors(file, weights)
    with raises(DataError, parents[1], repr(name), 2):
        if as_base:
            merge_folders([parents[0]], [1.0], tmp_path / "merged", base=parents[1], method="task")
        else:
            merge_folders(parents[:2], [0.5, 0.5], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
