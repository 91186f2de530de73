"""Whole runs on toy data: what stands still, what is selected, where a stage starts, and any number of members."""

import json
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import copies, moved, mst_distill, toy_recipe
from facts import raises
from safetensors.torch import load_file
from scaled import Scaled
from torch import Tensor, nn

import crossdistill
from crossdistill import Network, OptimizerConfig, Recipe, Report, Stage, run
from crossdistill.errors import FrozenError, NonFiniteError
from crossdistill.losses import kl, kl_divergence
from crossdistill.method import STUDENT
from crossdistill.methods import KD, Collaborate
from crossdistill.planning import part_size
from crossdistill.testing import toy_dataset, toy_models

DATA = toy_dataset()
PACKAGE = Path(crossdistill.__file__).parent


def trained(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What the last stage left: weights by `file/name`, and its outcome."""
    run(recipe, out)
    folder = sorted((out / "stages").iterdir())[-1]
    files = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
    return {**files, "outcome": json.loads((folder / "outcome.json").read_text())}


def test_a_frozen_teacher_with_batch_norm_stands_still(tmp_path: Path) -> None:
    recipe = toy_recipe(normalised=True)
    teachers: Mapping[str, Any] = recipe.teachers
    for network in teachers.values():
        network.train()
    before = {name: copies(network) for name, network in teachers.items()}
    run(recipe, tmp_path / "run")
    for name, network in teachers.items():
        assert moved(before[name], network) == set()
        assert all(module.training for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())


class Reached(Exception):
    pass


def test_few_frames_lie_between_the_loop_and_the_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: the frames of this package, from that of the loop over steps to the loss function's, both included.

    Not counted: what torch adds (`nn.Module.__call__`, DDP), and the divergence that raises here in place of ours.
    """

    def divergence(*arguments: Tensor) -> Tensor:
        # The recipe is tried on an example before any training.
        if any(frame.name == "fit" for frame in traceback.extract_stack()):
            raise Reached
        return kl_divergence(*arguments)

    monkeypatch.setattr(kl, "kl_divergence", divergence)
    with pytest.raises(Reached) as reached:
        run(toy_recipe(), tmp_path / "run")
    frames = [Path(frame.filename) for frame in traceback.extract_tb(reached.tb)]
    ours = [path.relative_to(PACKAGE).as_posix() for path in frames if path.is_relative_to(PACKAGE)]
    counted = ours[len(ours) - ours[::-1].index("training/runner.py") - 1 :]
    assert counted == ["training/runner.py", "training/step.py", "training/step.py", "methods/kd.py", "losses/kl.py"]


def test_layers_of_a_teacher_may_train_alone(tmp_path: Path) -> None:
    stage = Stage(method=Collaborate(), epochs=1, trains=("student", "teacher-0:hidden"), select="last")
    recipe = toy_recipe(stage)
    before = copies(recipe.teachers["teacher-0"])
    found = trained(recipe, tmp_path / "run")["teacher-0"]
    assert {name for name, value in found.items() if not torch.equal(value, before[name])} == {
        "module.hidden.weight",
        "module.hidden.bias",
    }


@pytest.mark.parametrize("wicked", ["moves a weight", "moves a buffer"])
def test_a_frozen_teacher_that_moved_is_a_fault(wicked: str, tmp_path: Path) -> None:
    recipe = toy_recipe(normalised=True, stages=(Stage(source="live", method=Scaled(wicked=wicked), epochs=1),))
    with raises(FrozenError, "'scaled'", "'teacher-0'"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_the_rest_of_a_member_is_watched_too(tmp_path: Path) -> None:
    """Also what hangs on the outermost module, where no layer is that could be looked at."""
    stage = Stage(
        source="live", method=Scaled(wicked="moves a weight"), epochs=1, trains=("student", "teacher-0:hidden")
    )

    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.inner, self.hidden = inner, nn.Linear(4, 4)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.hidden(self.gain * self.inner(first, second)[0])

    recipe = toy_recipe(stages=(stage,), teachers=1)
    inner: Any = recipe.teachers["teacher-0"]
    outer = Network(Outer(inner.module), inner.reads, ("hidden",))
    with raises(FrozenError, "'teacher-0.gain'"):
        run(recipe.model_copy(update={"teachers": {"teacher-0": outer}}), tmp_path / "run")


def test_nan_in_a_term_names_the_rows(tmp_path: Path) -> None:
    recipe = toy_recipe(Stage(source="live", method=Scaled(wicked="nan"), epochs=1, batch_size=24))
    with raises(NonFiniteError, "'scaled'", "epoch 0, step 2", "raw/nan", "sample ids"):
        run(recipe, tmp_path / "run")


def test_the_best_epoch_is_kept_and_a_tie_changes_nothing(tmp_path: Path) -> None:
    values = "judges [3.0, 1.0, 2.0, 1.0]"
    stage = Stage(source="live", method=Scaled(wicked=values), epochs=4, steps=1)
    best = trained(toy_recipe(stage), tmp_path / "best")
    assert best["outcome"]["selected"] == {STUDENT: {"epoch": 1, "value": 1.0}}
    assert [one[STUDENT] for one in best["outcome"]["history"]] == [3.0, 1.0, 2.0, 1.0]
    two = trained(toy_recipe(stage.model_copy(update={"epochs": 2, "select": "last"})), tmp_path / "two")
    assert all(torch.equal(value, two["student-network"][key]) for key, value in best["student-network"].items())
    last = trained(toy_recipe(stage.model_copy(update={"select": "last"})), tmp_path / "last")
    assert last["outcome"]["selected"] == {}
    assert any(not torch.equal(value, last["student-network"][key]) for key, value in best["student-network"].items())


def test_a_fresh_stage_starts_from_the_runs_beginning(tmp_path: Path) -> None:
    first = Stage(name="first", method=KD(), epochs=1)
    second = Stage(name="second", method=KD(temperature=2), epochs=2)
    alone = trained(toy_recipe(second), tmp_path / "alone")["student-network"]
    after = trained(toy_recipe(first, second), tmp_path / "after")["student-network"]
    fresh = trained(toy_recipe(stages=(first, second.model_copy(update={"fresh": True}))), tmp_path / "fresh")[
        "student-network"
    ]
    assert all(torch.equal(value, fresh[key]) for key, value in alone.items())
    assert any(not torch.equal(value, fresh[key]) for key, value in after.items())


def test_a_stage_of_no_epochs_leaves_everything_as_it_was(tmp_path: Path) -> None:
    recipe = toy_recipe(Stage(method=KD(), epochs=0))
    student: Any = recipe.student
    before = copies(student)
    found = trained(recipe, tmp_path / "run")["student-network"]
    assert all(torch.equal(value, found[name]) for name, value in before.items())


def test_what_a_method_measures_first_counts_as_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = KD.build

    def slow(self: KD, *rest: Any) -> Any:
        method = built(self, *rest)
        monkeypatch.setattr(type(method), "measure", lambda *_: time.sleep(0.5))
        return method

    monkeypatch.setattr(KD, "build", slow)
    assert trained(toy_recipe(Stage(method=KD(), epochs=0)), tmp_path / "run")["outcome"]["seconds"] >= 0.5


@pytest.mark.parametrize(("modalities", "teachers"), [(3, 5), (1, 2)])
def test_any_number_of_modalities_and_of_teachers(modalities: int, teachers: int, tmp_path: Path) -> None:
    names = ("first", "second", "third")[:modalities]
    data = toy_dataset(names, rows=160, labelled=0.5, without_target=0.1, absent=dict.fromkeys(names[1:], 0.3))
    report = run(mst_distill(data, teachers), tmp_path / "run")
    methods = [row.method for row in report.rows]
    masked = [f"teacher:teacher-{i}@{tap}" for i in range(teachers) for tap in ("joint", "hidden")]
    assert methods[0] == "chance"
    assert set(methods) == {"chance", "kd", *(f"teacher:teacher-{i}" for i in range(teachers)), *masked}
    assert all(0 <= row.mean <= 1 for row in report.rows)
    assert Report.load(tmp_path / "run") == report
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"collaborate", "specialise", "route", "kd"}
    pairs = [name for name in lines[0] if name.startswith("raw/kl/")]
    assert len(pairs) == (teachers + 1) * teachers


def test_a_student_may_read_several_modalities(tmp_path: Path) -> None:
    data = toy_dataset(("first", "second", "third"), rows=120, absent={"second": 0.4})
    cast = toy_models(data, 3)
    recipe = Recipe(
        data=data,
        student=cast["teacher-0"],
        teachers={"one": cast["teacher-1"], "two": cast["student-network"]},
        stages=(Stage(method="kd", epochs=1),),
    )
    assert recipe.learner == "first+second+third"
    report = run(recipe, tmp_path / "run")
    assert report.rows[-1].student == "first+second+third"


def test_how_many_rows_are_looked_at_together_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, bytes_ in (("many", 2**24), ("few", 1)):
        monkeypatch.setattr(part_size, "PART_BYTES", {"cpu": bytes_})
        monkeypatch.setattr(part_size, "FEW_ROWS", 3)
        report = run(mst_distill(DATA, 2), tmp_path / name)
        outcomes = sorted((tmp_path / name).glob("stages/*/outcome.json"))
        histories = [epoch for path in outcomes for epoch in json.loads(path.read_text())["history"]]
        found.append(({row.method: row.values for row in report.rows}, histories))
    assert found[0][0] == found[1][0]
    assert len(found[0][1]) == 4
    for many, few in zip(found[0][1], found[1][1], strict=True):
        assert many == pytest.approx(few, rel=1e-5)


def test_training_learns_what_the_toy_data_hold(tmp_path: Path) -> None:
    """The whole machine, not only its parts: a student that was taught is far above chance, and above its start."""
    data = toy_dataset(rows=400, noise=0.7)
    report = run(
        toy_recipe(
            data=data,
            stages=(
                Stage(
                    method="supervised",
                    learner="teacher-0",
                    teachers=(),
                    epochs=8,
                    optimizer=OptimizerConfig(learning_rate=1e-2),
                ),
                Stage(method="kd", teachers=("teacher-0",), epochs=8, optimizer=OptimizerConfig(learning_rate=1e-2)),
            ),
        ),
        tmp_path / "run",
    )
    found = {row.method: row.mean for row in report.rows}
    assert found["chance"] < 0.4
    assert found["teacher:teacher-0"] > 0.85
    assert found["kd"] > 0.7
    assert found["teacher:teacher-1"] < 0.6, "it was never trained"
