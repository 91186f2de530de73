"""What is saved comes back bit for bit, or is passed over; nothing damaged is ever taken for whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises
from safetensors.torch import save_file
from torch import Tensor, nn

from crossdistill.errors import DataError, RunError, ShapeError
from crossdistill.run_folder.checkpoint import (
    Checkpoint,
    drop_checkpoints,
    flatten,
    load_outcome,
    newest_checkpoint,
    restore,
    save_checkpoint,
    save_outcome,
)
from crossdistill.runtime.tensor_file import load_weights, read_weights


def saved(folder: Path, stage: int, epoch: int, step: int, keep: int = 9, **state: Any) -> None:
    tensors = {"net/weight": torch.full((2,), float(100 * stage + 10 * epoch + step))}
    save_checkpoint(folder, Checkpoint(stage, epoch, step, tensors, {"where": [stage, epoch, step], **state}), keep)


def newest(folder: Path) -> Checkpoint:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_everything_comes_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    rng, moment = generator.get_state(), torch.randn(2, 2)
    state = {
        "rng": rng,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": moment}}, "param_groups": [{"lr": 0.1}]},
        "history": [{"epoch": 0, "student": 0.123456789012345}],
        "none": None,
    }
    tensors = {"a/weight": torch.randn(3, 2).T, "best/a/count": torch.tensor(7), "half": torch.ones(2).bfloat16()}
    save_checkpoint(tmp_path, Checkpoint(1, 2, 3, tensors, state), keep=1)
    checkpoint = newest(tmp_path)
    assert (checkpoint.stage, checkpoint.epoch, checkpoint.step) == (1, 2, 3)
    assert set(checkpoint.tensors) == set(tensors)
    assert all(torch.equal(checkpoint.tensors[name], value) for name, value in tensors.items())
    assert all(checkpoint.tensors[name].dtype == value.dtype for name, value in tensors.items())
    assert torch.equal(checkpoint.state["rng"], rng)
    assert checkpoint.state["history"] == state["history"]
    assert torch.equal(checkpoint.state["optimizer"]["state"][0]["exp_avg"], moment)


def test_the_newest_is_the_furthest_and_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "not there") is None
    for position in ((0, 0, 5), (1, 9, 9), (0, 99999, 0), (2, 0, 1), (1, 10, 0)):
        saved(tmp_path, *position)
    assert newest(tmp_path).state["where"] == [2, 0, 1]
    shutil.rmtree(tmp_path / "02-00000-0000001")
    assert newest(tmp_path).state["where"] == [1, 10, 0]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        saved(tmp_path, 0, 0, step, keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"00-00000-{step:07d}" for step in range(6 - keep, 6)]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(b"\x80\x04garbage" * 20)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [truncated, emptied, garbled, removed])
@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt", "about.json"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, harm: Any, file: str) -> None:
    saved(tmp_path, 0, 0, 1)
    saved(tmp_path, 0, 0, 2)
    harm(tmp_path / "00-00000-0000002" / file)
    assert newest(tmp_path).state["where"] == [0, 0, 1]
    harm(tmp_path / "00-00000-0000001" / file)
    assert newest_checkpoint(tmp_path) is None


def test_about_that_lacks_its_entries_is_damage_too(tmp_path: Path) -> None:
    saved(tmp_path, 0, 0, 1)
    saved(tmp_path, 0, 0, 2)
    (tmp_path / "00-00000-0000002" / "about.json").write_text("{}")
    assert newest(tmp_path).step == 1


def test_a_damaged_one_is_replaced_when_the_run_comes_by_again(tmp_path: Path) -> None:
    saved(tmp_path, 0, 0, 2)
    truncated(tmp_path / "00-00000-0000002" / "weights.safetensors")
    saved(tmp_path, 0, 0, 2)
    assert newest(tmp_path).state["where"] == [0, 0, 2]


def test_half_written_folders_are_not_seen(tmp_path: Path) -> None:
    saved(tmp_path, 0, 0, 1)
    shutil.copytree(tmp_path / "00-00000-0000001", tmp_path / ".00-00000-0000002.abc.tmp")
    (tmp_path / "00-00000-0000003").mkdir()
    assert newest(tmp_path).step == 1


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "made",)

    saved(tmp_path, 0, 0, 1)
    torch.save({"where": Evil()}, tmp_path / "00-00000-0000001" / "state.pt")
    assert newest_checkpoint(tmp_path) is None
    assert not (tmp_path / "made").exists()


def test_dropping_removes_all(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 0, 0, 1)
    drop_checkpoints(tmp_path / "checkpoints")
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    drop_checkpoints(tmp_path / "checkpoints")


def test_flattened_state_is_a_copy_and_goes_back(tmp_path: Path) -> None:
    net, other = module(), module()
    flat = flatten({"net": net, "other": other})
    assert {"net/0.weight", "net/1.running_mean", "net/1.num_batches_tracked", "other/0.bias"} <= set(flat)
    before = {name: value.clone() for name, value in flat.items()}
    with torch.no_grad():
        net[0].weight.add_(1)
        net(torch.randn(8, 3))
    assert all(torch.equal(flat[name], value) for name, value in before.items())
    restore({"net": net}, flat)
    assert all(torch.equal(value, flat[f"net/{name}"]) for name, value in net.state_dict().items())
    with raises(RuntimeError, "Missing key"):
        restore({"net": net}, {name: value for name, value in flat.items() if "bias" not in name})


def outcome(folder: Path) -> dict[str, nn.Module]:
    modules = {"image": module(), "method": nn.Linear(2, 2)}
    about = {"key": "abc", "stage": "kd", "seconds": 1.5, "peak_memory_mb": 1.0, "metrics": 0}
    save_outcome(folder / "stage", modules, about)
    return modules


def test_what_a_stage_trained_comes_back(tmp_path: Path) -> None:
    modules = outcome(tmp_path)
    wanted = flatten(modules)
    others: dict[str, nn.Module] = {
        "image": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        "method": nn.Linear(2, 2),
    }
    about = load_outcome(tmp_path / "stage", others, "abc")
    assert (about["seconds"], set(about["files"])) == (1.5, {"image", "method"})
    assert all(torch.equal(value, wanted[name]) for name, value in flatten(others).items())
    assert load_outcome(tmp_path / "another", others, "abc") is None


def test_the_outcome_of_another_stage_is_refused(tmp_path: Path) -> None:
    with raises(RunError, "'kd'"):
        load_outcome(tmp_path / "stage", outcome(tmp_path), "abd")


@pytest.mark.parametrize("harm", [truncated, emptied, removed])
def test_damaged_weights_of_a_stage_are_refused(tmp_path: Path, harm: Any) -> None:
    modules = outcome(tmp_path)
    harm(tmp_path / "stage" / "image.safetensors")
    with raises(RunError, "image.safetensors"):
        load_outcome(tmp_path / "stage", modules, "abc")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "abc", "stage": "kd"}', "{}"])
def test_a_damaged_outcome_is_said(tmp_path: Path, text: str) -> None:
    modules = outcome(tmp_path)
    (tmp_path / "stage" / "outcome.json").write_text(text)
    with raises(RunError, "outcome.json"):
        load_outcome(tmp_path / "stage", modules, "abc")


def test_outcomes_hold_no_time_and_no_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_outcome(tmp_path / name / "stage", {"image": module()}, {"key": "abc"})
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    for file in files[0]:
        if (tmp_path / "one" / file).is_file():
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_weights_that_do_not_fit_say_which(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(4), "extra": torch.zeros(1)}
    save_file(tensors, tmp_path / "w.safetensors")
    with raises(ShapeError, "Net", "1.weight", "2 more", "extra", "0.weight (4, 2)", "(4, 3)"):
        load_weights(module(), tmp_path / "w.safetensors", "Net")


def test_weights_that_cannot_be_read_name_the_file(tmp_path: Path) -> None:
    with raises(DataError, "none.safetensors"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_text(json.dumps({"not": "weights"}))
    with raises(DataError, "bad.safetensors"):
        read_weights(tmp_path / "bad.safetensors")
