"""Splits in which no row, or not every row, could judge a network: what is refused, and what a loss is a mean over."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from facts import raises
from torch import nn

from crossdistill import Dataset, Network, Recipe, Report, Stage, load_student, run
from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import RecipeError
from crossdistill.losses import cross_entropy

ROWS = 60
IDS = np.arange(ROWS)
SPLITS = {"train": IDS[:30], "validation": IDS[30:45], "test": IDS[45:]}
TARGETS = IDS % 3
VALUES = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)


def recipe(
    *, without_target: Any = (), absent: Any = (), select: Literal["best", "last"] = "best", of: str = "x"
) -> Recipe:
    targets, there = TARGETS.copy(), np.ones(ROWS, dtype=bool)
    targets[list(without_target)], there[list(absent)] = MISSING_TARGET, False
    inputs = {"x": VALUES, "z": VALUES[:, ::-1]}
    data = Dataset.from_arrays("own", inputs, targets, splits=SPLITS, present={of: there})
    return Recipe(
        data=data,
        student=Network(nn.Linear(4, 3), reads="x"),
        student_name="student",
        teachers={"teacher": Network(nn.Linear(4, 3), reads="z")},
        stages=(
            Stage(method="supervised", learner="teacher", epochs=1, select="last"),
            Stage(method="kd", epochs=2, select=select),
        ),
    )


@pytest.mark.parametrize("how", ["without_target", "absent"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a8_a_split_that_judges_nothing_is_refused_before_training(split: str, how: str, tmp_path: Path) -> None:
    """Before: every epoch was as good as the first, which was taken; or a traceback after the training."""
    with raises(RecipeError, split) as refused:
        run(recipe(**{how: SPLITS[split]}), tmp_path / "out")
    assert len(refused.value.faults) == 1
    assert not (tmp_path / "out" / "stages").exists()


def test_a8_the_last_epoch_needs_no_validation(tmp_path: Path) -> None:
    report = run(recipe(without_target=SPLITS["validation"], select="last"), tmp_path / "out")
    assert report.rows[-1].test_rows == 15


def test_a8_a_teacher_that_sees_no_test_row_has_no_row_of_results(tmp_path: Path) -> None:
    report = run(recipe(absent=SPLITS["test"], of="z"), tmp_path / "out")
    assert [row.method for row in Report.load(tmp_path / "out").rows] == ["chance", "kd"]
    assert report.rows[-1].test_rows == 15


def test_a8_a_validation_loss_is_the_mean_over_rows_with_a_target(tmp_path: Path) -> None:
    """Before, rows without one counted as a loss of zero."""
    missing = SPLITS["validation"][:10]
    given = recipe(without_target=missing).model_copy(update={"seed": 1})
    run(given, tmp_path / "out")
    outcome = json.loads((tmp_path / "out" / "stages" / "01-kd" / "outcome.json").read_text())
    rows = SPLITS["validation"][10:]
    student = load_student(tmp_path / "out", module=nn.Linear(4, 3))
    logits = student.logits({"x": torch.from_numpy(VALUES[rows])})
    wanted = cross_entropy(logits, torch.from_numpy(TARGETS[rows])).mean().item()
    assert outcome["selected"]["student"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_a8_a_teacher_that_shares_no_training_row_is_refused(tmp_path: Path) -> None:
    """Each sees rows, and none of these is a row of both: the student would learn from labels alone."""
    given = recipe()
    inputs = {name: value.numpy() for name, value in given.data.inputs.items()}
    present = {"x": IDS % 2 == 0, "z": IDS % 2 == 1}
    data = Dataset.from_arrays("own", inputs, TARGETS, splits=SPLITS, present=present)
    with raises(RecipeError, "'teacher'", 15):
        run(given.model_copy(update={"data": data}), tmp_path / "out")


def test_a8_distillation_without_any_label(tmp_path: Path) -> None:
    """A term over no row at all is zero, not NaN."""
    given = recipe()
    data = replace(given.data, labelled=torch.zeros(ROWS, dtype=torch.bool))
    assert run(given.model_copy(update={"data": data}), tmp_path / "out").rows[-1].labelled == 0
