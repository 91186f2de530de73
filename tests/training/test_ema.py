"""The average of a student's weights: judged, kept and left in its place, and taken up again to the last bit."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from facts import raises
from kills import assert_same_run, killed_at
from resumable import averaged
from safetensors.torch import load_file
from torch import nn

from crossdistill import run
from crossdistill.errors import RecipeError, StoppedError
from crossdistill.methods.kd import KD
from crossdistill.testing import toy_dataset
from crossdistill.testing.ranks import compare_with_one
from crossdistill.testing.rehearsal import Contract, Rehearsal
from crossdistill.training.ema import Ema


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(averaged(), out)
    return out


def test_the_average_is_that_of_its_formula() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    module.register_buffer("unsaved", torch.ones(1), persistent=False)
    ema = Ema(module, 0.75)
    wanted = {name: value.clone() for name, value in module.state_dict().items()}
    for step in range(5):
        with torch.no_grad():
            module[0].weight += torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
            module[1].running_mean += 1
            module[1].num_batches_tracked += 1
        ema.update()
        for name, value in module.state_dict().items():
            wanted[name] = 0.75 * wanted[name] + 0.25 * value if value.is_floating_point() else value.clone()
    now = {name: value.clone() for name, value in module.state_dict().items()}
    with ema.in_place():
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, wanted[name])
        assert torch.equal(module[0].bias, now["0.bias"]), "what does not train is not even rounded"
    assert all(torch.equal(value, now[name]) for name, value in module.state_dict().items())


def test_tied_weights_are_averaged_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    ema = Ema(module, 0.5)
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight += 1
    ema.update()
    ema.exchange()
    torch.testing.assert_close(module[1].weight.detach(), before + 0.5)


def test_steps_move_the_weights_as_without_and_validation_sees_the_average() -> None:
    plain, case = (Rehearsal(Contract(KD(), toy_dataset()), teachers=2, ema=decay) for decay in (None, 0.5))
    for number in range(3):
        for one in (plain, case):
            one.step(one.rows(number), number)
    assert all(torch.equal(value, case.weights()[name]) for name, value in plain.weights().items())
    with case.training.averaged():
        assert any(not torch.equal(value, case.weights()[name]) for name, value in plain.weights().items())
    assert case.training.ema is not None
    assert "ema" in case.training.state()
    assert "ema" not in plain.training.state()


def test_a_run_leaves_the_average_and_says_so(whole: Path, tmp_path: Path) -> None:
    without = averaged()
    stages = tuple(stage.model_copy(update={"ema": None}) for stage in without.stages)
    run(without.model_copy(update={"stages": stages}), tmp_path / "without")
    one, other = (load_file(out / "student" / "model.safetensors") for out in (whole, tmp_path / "without"))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    assert "moving average over training (decay 0.9)" in (whole / "student" / "README.md").read_text()
    assert "moving average" not in (tmp_path / "without" / "student" / "README.md").read_text()
    assert '"ema": 0.9' in (whole / "stages" / "00-kd" / "outcome.json").read_text().replace('"ema":0.9', '"ema": 0.9')
    assert "ema: 0.9" in (whole / "recipe.yaml").read_text()
    assert "ema" not in (tmp_path / "without" / "recipe.yaml").read_text()


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_average_of_the_last_epoch_is_left_where_that_is_asked_for(select: str, tmp_path: Path) -> None:
    """With a decay near zero the average is the weights, whichever way the state is chosen."""
    recipe = averaged()
    for decay, out in ((1e-7, "average"), (None, "plain")):
        stages = tuple(stage.model_copy(update={"ema": decay, "select": select}) for stage in recipe.stages)
        run(recipe.model_copy(update={"stages": stages}), tmp_path / out)
    one, other = (load_file(tmp_path / out / "student" / "model.safetensors") for out in ("average", "plain"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("call", [3, 6, 9, 14])
def test_a_killed_run_with_warm_up_and_average_ends_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, call: int
) -> None:
    out = tmp_path / "run"
    assert killed_at(call, True, partial(run, averaged(), out)) == -signal.SIGKILL
    run(averaged(), out, resume=True)
    assert_same_run(out, whole)


def test_stopping_after_each_step_changes_nothing(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(20):
        try:
            run(averaged(), out, resume=True, stop=lambda: True)
        except StoppedError:
            continue
        break
    assert_same_run(out, whole)


def test_weights_that_cannot_hold_an_average_are_refused() -> None:
    recipe = averaged()
    student = recipe.student.module.to(torch.bfloat16)
    network = replace_module(recipe, student)
    with raises(RecipeError, "bfloat16"):
        Rehearsal(replace(Contract(KD(), recipe.data), given=network), teachers=1, ema=0.9)


def replace_module(recipe: object, student: nn.Module) -> dict[str, object]:
    return {recipe.student_name: recipe.student.holding(student, None), **recipe.teachers}


@pytest.mark.slow
def test_two_processes_have_the_average_of_one() -> None:
    compare_with_one(Contract(KD(), toy_dataset(), stage={"ema": 0.9}), ranks=2, tolerance=1e-5)
