"""Runs of live objects: they leave a program's own networks alone, and go on whatever the program draws next time."""

from pathlib import Path

import pytest
import torch
from builders import Both, Heard
from facts import raises
from torch import nn

from crossdistill import Network, Recipe, Stage, load_student, run
from crossdistill.errors import RecipeError, ResumeError
from crossdistill.recipe import Checkpoints
from crossdistill.runtime.hashing import fingerprint
from crossdistill.testing import toy_dataset

DATASET = toy_dataset(("first", "second"), rows=120)


def _recipe(teacher_seed: int = 0) -> Recipe:
    """With networks from the random state of the moment, as a program that sets no seed makes them."""
    student = Network(nn.Linear(6, 4), "first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(teacher_seed)
        frozen = Network(Both(), ("first", "second"), taps=("first",))
    moving = Network(Both(), ("first", "second"))
    return Recipe(
        data=DATASET,
        student=student,
        teachers={"moving": moving, "frozen": frozen},
        stages=(Stage(method="supervised", learner="moving", epochs=1), Stage(method="kd", epochs=2)),
        checkpoints=Checkpoints(steps=1),
    )


def _weights(out: Path) -> bytes:
    return (out / "student" / "model.safetensors").read_bytes()


def test_a_run_leaves_the_programs_networks_as_they_were(tmp_path: Path) -> None:
    recipe = _recipe()
    networks = [recipe.student, *recipe.teachers.values()]
    before = [fingerprint(network) for network in networks if isinstance(network, Network)]
    run(recipe, tmp_path / "one")
    assert [fingerprint(network) for network in networks if isinstance(network, Network)] == before
    run(recipe, tmp_path / "two")
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_run_goes_on_though_the_program_draws_other_weights(tmp_path: Path, steps: int) -> None:
    recipe = _recipe()
    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "parts", display=Heard(steps))
    again = _recipe()
    assert fingerprint(again.student) != fingerprint(recipe.student)
    run(again, tmp_path / "parts", resume=True)
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")
    student = load_student(tmp_path / "parts", module=nn.Linear(6, 4))
    assert student.logits({"first": torch.zeros(2, 6)}).shape == (2, 4)


def test_a_frozen_teacher_has_to_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(_recipe(), tmp_path / "out", display=Heard(3))
    with raises(ResumeError, "'frozen'"):
        run(_recipe(teacher_seed=1), tmp_path / "out", resume=True)


def test_the_file_says_that_it_cannot_be_run(tmp_path: Path) -> None:
    run(_recipe(), tmp_path / "out")
    text = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "live objects (data, student, teachers.moving, teachers.frozen)" in text
    with raises(RecipeError, "module:function"):
        Recipe.from_yaml(tmp_path / "out" / "recipe.yaml")
