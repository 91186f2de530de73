"""A stage of which no key says all is neither shared nor banked, and says so; a key of other code finds nothing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import Heard
from facts import raises
from torch import Tensor, nn

from crossdistill import Dataset, Network, Recipe, Stage, run
from crossdistill.errors import DataError
from crossdistill.planning.plan import prepare
from crossdistill.testing import toy_dataset

DATASET = toy_dataset(("first",), rows=60)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.times = nn.Linear(6, 4), 0

    def forward(self, first: Tensor) -> Tensor:
        return self.linear(first)


class Counts(Linear):
    """What it gives depends on how often it ran."""

    def forward(self, first: Tensor) -> Tensor:
        self.times += 1
        return self.linear(first)


class Draws(Linear):
    """It holds a source of random numbers, whose state no key can say."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator()


@pytest.mark.parametrize(("kind", "where"), [(Counts, "module.times"), (Draws, "module.source")])
def test_a2_what_cannot_be_keyed_is_neither_shared_nor_banked(
    tmp_path: Path, kind: type[nn.Module], where: str
) -> None:
    teacher = Network(kind(), "first")
    student = Network(nn.Linear(6, 4), "first", taps=())
    stage = Stage(method="kd", epochs=4, batch_size=16)
    recipe = Recipe(data=DATASET, student=student, teachers={"t": teacher}, stages=(stage,))
    says = Heard()
    run(recipe, tmp_path / "out", share=tmp_path / "share", display=says)
    assert any("not shared" in line and f"t: {where}" in line for line in says.lines)
    assert any("t logits: live" in line and where in line for line in says.lines)
    assert not [path for path in (tmp_path / "share").glob("*") if path.name not in {"banks", "locks"}]
    # The run's own folder still knows it.
    assert run(recipe, tmp_path / "out", share=tmp_path / "share", resume=True)


def test_a2_a_stage_on_what_was_not_shared_is_not_shared(tmp_path: Path) -> None:
    teacher = Network(Counts(), "first")
    stages = (Stage(method="supervised", learner="t", epochs=1), Stage(method="kd", epochs=1))
    recipe = Recipe(data=DATASET, student=Network(nn.Linear(6, 4), "first"), teachers={"t": teacher}, stages=stages)
    jobs = prepare(recipe, DATASET, torch.device("cpu")).jobs
    assert all(any("module.times" in reason for reason in job.unkeyed) for job in jobs)


SCALE = 1.0


class Scaled(Linear):
    def forward(self, first: Tensor) -> Tensor:
        return SCALE * self.linear(first)


def test_a2_shared_stages_and_banks_of_other_code_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's weights are the same; a global that its forward reads is not."""
    torch.manual_seed(0)
    teacher, student = Network(Scaled(), "first"), Network(nn.Linear(6, 4), "first")
    stage = Stage(method="kd", epochs=4, batch_size=16)
    recipe = Recipe(data=DATASET, student=student, teachers={"t": teacher}, stages=(stage,))
    found = []
    for name, scale in (("a", 1.0), ("b", 25.0), ("c", 25.0)):
        monkeypatch.setattr(sys.modules[__name__], "SCALE", scale)
        says = Heard()
        run(recipe, tmp_path / name, share=tmp_path / "share", display=says)
        taken = any("reused from another run" in line for line in says.lines)
        found.append(((tmp_path / name / "student" / "model.safetensors").read_bytes(), taken))
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 25.0)
    run(recipe, tmp_path / "alone")
    assert found[1] == ((tmp_path / "alone" / "student" / "model.safetensors").read_bytes(), False)
    assert found[0][0] != found[1][0]
    assert found[2] == (found[1][0], True)


class Noisy(Linear):
    """Dropout that is active in evaluation too."""

    def forward(self, first: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(first), 0.5)


def test_a2_a_teacher_of_random_answers_is_not_banked(tmp_path: Path) -> None:
    stage = Stage(method="kd", epochs=4, batch_size=16)
    teachers = {"t": Network(Noisy(), "first")}
    recipe = Recipe(data=DATASET, student=Network(nn.Linear(6, 4), "first"), teachers=teachers, stages=(stage,))
    says = Heard()
    run(recipe, tmp_path / "out", share=tmp_path / "share", display=says)
    assert any("t logits: live" in line and "its output for the same row" in line for line in says.lines)
    assert not [path for path in (tmp_path / "share").glob("*") if path.name not in {"banks", "locks"}]


def test_a2_data_that_were_changed_after_they_were_taken_are_refused(tmp_path: Path) -> None:
    """The arrays of the program are not copied; the fingerprint is that of their first values."""
    values = torch.randn(60, 6).numpy()
    data = Dataset.from_arrays("own", {"first": values}, [number % 4 for number in range(60)])
    stage = Stage(method="supervised", epochs=1)
    recipe = Recipe(data=data, student=Network(nn.Linear(6, 4), "first"), stages=(stage,))
    run(recipe, tmp_path / "out", share=tmp_path / "share")
    other = recipe.model_copy(update={"data": replace(data, targets=data.targets.flip(0))})
    with raises(DataError, "own"):
        run(other, tmp_path / "targets", share=tmp_path / "share")
    values[:] = 0
    for out, resume in (("out", True), ("again", False)):
        with raises(DataError, "own"):
            run(recipe, tmp_path / out, share=tmp_path / "share", resume=resume)
