"""Runs on every kind of targets: what is trained, refused, measured, written and read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import raises
from torch import Tensor, nn

from crossdistill import Dataset, Distiller, Network, Recipe, Report, Stage, load_student, run
from crossdistill.errors import RecipeError
from crossdistill.methods import KD, Supervised
from crossdistill.methods.logit_method import TeacherPrediction
from crossdistill.planning.plan import prepare

ROWS, CPU = 240, torch.device("cpu")
SOURCE = np.random.default_rng(0)
INPUTS = SOURCE.standard_normal((ROWS, 6)).astype(np.float32)
SCORES = np.tanh(INPUTS @ SOURCE.standard_normal((6, 3)))
TARGETS: dict[str, Any] = {
    "regression": 100 + 20 * SCORES[:, :2],
    "multi-label": (SCORES > 0.3).astype(float),
    "soft": torch.tensor(3 * SCORES).softmax(1).numpy(),
    "classes": SCORES.argmax(1),
}
MAIN = {"regression": "r2", "multi-label": "map", "soft": "accuracy"}


def data_of(task: Any, **more: Any) -> Dataset:
    return Dataset.from_arrays("own", {"x": INPUTS}, TARGETS[task], task=task, **more)


def network(hidden: int, outputs: int) -> Network:
    torch.manual_seed(hidden)
    layers = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return Network(layers, ("x",), taps=("0", "1"))


def recipe(task: str, method: Any, data: Dataset | None = None, **more: Any) -> Recipe:
    data = data_of(task) if data is None else data
    outputs = len(data.classes)
    teach = Stage(method="supervised", learner="teacher", epochs=8, batch_size=16)
    own = Stage(method=method, epochs=8, batch_size=16)
    stages = (own,) if own.method.name == "supervised" else (teach, own)
    teachers = {} if len(stages) == 1 else {"teacher": network(32, outputs)}
    return Recipe(data=data, student=network(8, outputs), teachers=teachers, stages=stages, **more)


@pytest.mark.parametrize("task", ["regression", "multi-label", "soft"])
def test_a_student_is_distilled_on_targets_of_every_kind(task: str, tmp_path: Path) -> None:
    data, display = data_of(task), Heard()
    report = run(recipe(task, "kd", data), tmp_path / "run", display=display)
    by_name = {row.method: row for row in report.rows}
    assert {row.metric for row in report.rows} == {MAIN[task]}
    assert by_name["teacher:teacher"].mean > by_name["kd"].mean > by_name["chance"].mean
    assert Report.load(tmp_path / "run").rows == report.rows
    line = next(line for line in display.lines if "teacher " in line and "validation split" in line)
    assert MAIN[task] in line
    said = [line for line in display.lines if "chosen" in line]
    assert bool(said) == (task != "soft")
    student = load_student(tmp_path / "run", network(8, len(data.classes)).module)
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        found = {name: file[name] for name in file.files}
    assert len(found["scores"]) == len(found["ids"]) == report.rows[-1].test_rows
    predicted = student.predict(torch.tensor(INPUTS[found["ids"]]))
    for number, prediction in enumerate(predicted):
        values = list(prediction.values.values())
        if task == "regression":
            assert values == pytest.approx(found["predicted"][number].tolist(), rel=1e-4)
            assert 60 < values[0] < 140, "in the unit of the targets"
        elif task == "multi-label":
            assert values == pytest.approx(found["probabilities"][number].tolist(), abs=1e-5)
        else:
            assert prediction.label == data.classes[found["predicted"][number]]


def test_r2_in_the_table_is_that_of_the_predictions(tmp_path: Path) -> None:
    report = run(recipe("regression", "supervised"), tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        predicted, targets = file["predicted"].astype(float), file["targets"].astype(float)
    residual = ((predicted - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)
    row = report.rows[-1]
    assert row.mean == pytest.approx(float((1 - residual).mean()), abs=1e-6)
    measured = {other.metric: other.mean for other in row.metrics}
    assert measured["mae"] == pytest.approx(abs(predicted - targets).mean(), rel=1e-6)
    assert measured["rmse"] == pytest.approx(np.sqrt(((predicted - targets) ** 2).mean(0)).mean(), rel=1e-6)
    plain = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [other["metric"] for other in plain[-1]["metrics"]] == ["mae", "rmse"]
    assert "| r2 | mae | rmse |" in report.markdown()


def test_results_of_classes_have_the_keys_that_they_had(tmp_path: Path) -> None:
    run(recipe("classes", "supervised"), tmp_path / "run")
    plain = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "metrics" not in plain[0]
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert not any(field in text for field in ("metrics", "smooth", "form"))
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        assert set(file.files) == {"ids", "predicted", "targets", "probabilities"}


def test_a_recipe_chooses_its_metrics(tmp_path: Path) -> None:
    report = run(recipe("classes", "supervised", metrics=("macro-f1", "accuracy")), tmp_path / "run")
    row = report.rows[-1]
    assert (row.metric, [other.metric for other in row.metrics]) == ("macro-f1", ["accuracy"])


@pytest.mark.parametrize(
    ("task", "method", "more", "facts"),
    [
        ("multi-label", KD(form="softmax"), {}, ["form='sigmoid'", "multi-label"]),
        ("multi-label", "dkd", {}, ["dkd", "multi-label", "form='sigmoid'"]),
        ("regression", "dist", {}, ["dist", "regression", "kd"]),
        ("regression", KD(standardise=True), {}, ["standardise", "regression"]),
        ("regression", Supervised(class_weights="balanced"), {}, ["class_weights", "regression"]),
        ("classes", Supervised(smooth=1.0), {}, ["smooth", "classes"]),
        ("multi-label", Supervised(class_weights=(1.0,)), {}, ["1 numbers for 3"]),
        ("regression", "kd", {"metrics": ("accuracy",)}, ["accuracy", "r2"]),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    task: str, method: Any, more: dict[str, Any], facts: list[str]
) -> None:
    made = recipe(task, method, **more)
    with raises(RecipeError, *facts):
        assert isinstance(made.data, Dataset)
        prepare(made, made.data, CPU)


@pytest.mark.parametrize(("task", "metric"), [("regression", "mae"), ("classes", "macro-f1")])
def test_the_best_epoch_is_that_of_the_metric(task: str, metric: str, tmp_path: Path) -> None:
    made = recipe(task, "supervised")
    stage = made.stages[0].model_copy(update={"select_by": metric})
    run(made.model_copy(update={"stages": (stage,)}), tmp_path / "run")
    outcome = json.loads((tmp_path / "run" / "stages" / "00-supervised" / "outcome.json").read_text())
    values = [epoch[metric] for epoch in outcome["history"]]
    best = min(values) if metric == "mae" else max(values)
    assert outcome["selected"]["student"]["epoch"] == values.index(best)
    assert "select_by" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_metric_of_another_task_selects_nothing() -> None:
    made = recipe("regression", "supervised")
    stage = made.stages[0].model_copy(update={"select_by": "accuracy"})
    with raises(RecipeError, "select_by", "accuracy", "r2"):
        assert isinstance(made.data, Dataset)
        prepare(made.model_copy(update={"stages": (stage,)}), made.data, CPU)


@pytest.mark.parametrize("task", ["regression", "multi-label", "soft"])
@pytest.mark.parametrize("method", ["rkd", "pkt", "hint"])
def test_methods_on_features_train_on_every_kind(task: str, method: str, tmp_path: Path) -> None:
    made = recipe(task, method)
    stages = tuple(stage.model_copy(update={"epochs": 1}) for stage in made.stages)
    report = run(made.model_copy(update={"stages": stages}), tmp_path / "run")
    assert np.isfinite(report.rows[-1].mean)


def test_balanced_labels_weigh_their_positive_rows() -> None:
    targets = np.zeros((ROWS, 2))
    targets[: ROWS // 4, 0] = targets[::2, 1] = 1
    data = Dataset.from_arrays("own", {"x": INPUTS}, targets, task="multi-label", classes=["rare", "even"])
    made = recipe("multi-label", Supervised(class_weights="balanced"), data)
    method = prepare(made, data, CPU).jobs[0].method
    train = data.targets[data.splits["train"]]
    wanted = ((train == 0).sum(0) / (train == 1).sum(0)).tolist()
    assert isinstance(method.positive, Tensor)
    assert method.positive.tolist() == pytest.approx(wanted)


def test_a_teacher_in_the_unit_of_the_targets_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 2)
            fit, *_ = np.linalg.lstsq(np.c_[INPUTS, np.ones(ROWS)], TARGETS["regression"], rcond=None)
            self.inner.load_state_dict(
                {"weight": torch.tensor(fit[:-1].T.copy()).float(), "bias": torch.tensor(fit[-1]).float()}
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    data = data_of("regression")
    made = Recipe(
        data=data,
        student=network(8, 2),
        teachers={"unit": Network(Unit(), ("x",))},
        stages=(Stage(method="kd", epochs=1),),
    )
    run(made, tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records if "chance" in record.getMessage()]
    assert "standardise=False" in said


def test_a_loop_of_ones_own_learns_numbers_and_labels() -> None:
    student, teacher = network(8, 2).module, network(32, 2).module
    inputs, targets = torch.tensor(INPUTS[:8]), torch.randn(8, 2)
    loop = Distiller(student, teacher, KD(fixed=(1.0, 0.0)), task="regression")
    assert float(loop(inputs, targets).detach()) == pytest.approx(
        float((student(inputs) - targets).square().mean().detach()), rel=1e-5
    )
    labels = (targets > 0).float()
    loop = Distiller(student, teacher, KD(fixed=(1.0, 0.0)), task="multi-label")
    wanted = nn.functional.binary_cross_entropy_with_logits(student(inputs), labels)
    assert float(loop(inputs, labels).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_several_teachers_of_labels_and_numbers_are_combined() -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[4.0, -1.0]]])
    weights = torch.tensor([[0.25], [0.75]]).log()
    both = TeacherPrediction("both", logits, weights, torch.ones(1), 1.0, None)
    assert both.mean().tolist() == [[3.0, pytest.approx(-0.25)]]
    chances = 0.25 * (logits[0] / 2).sigmoid() + 0.75 * (logits[1] / 2).sigmoid()
    assert torch.allclose((both.at_labels(2.0) / 2).sigmoid(), chances)
