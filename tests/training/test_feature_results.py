"""Runs whose student learns features alone: without any label, and judged by probes where there are labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Heard, toy_recipe
from facts import raises

from crossdistill import Dataset, NetworkConfig, Report, Stage, load_student, run
from crossdistill.errors import RecipeError, StoppedError
from crossdistill.method import STUDENT
from crossdistill.planning.plan import prepare
from crossdistill.recipes.setup import ExperimentSetup, Length
from crossdistill.recipes.stages import recipe
from crossdistill.testing import toy_dataset
from crossdistill.training.evaluation import evaluate_folder
from crossdistill.training.probe import probe

TRANSLATE = Stage(method={"name": "translate", "balance": "loss", "drop": 0.3}, epochs=3, batch_size=24)


def without_labels() -> Dataset:
    labelled = toy_dataset(rows=120)
    return Dataset.from_arrays("bare", labelled.inputs, splits=labelled.splits, classes=labelled.classes)


def test_a_run_needs_no_label(tmp_path: Path) -> None:
    made = toy_recipe(TRANSLATE, data=without_labels())
    report = run(made, tmp_path / "run")
    (row,) = report.rows
    assert (row.metric, row.labelled, row.test_rows) == ("validation loss", 0.0, 0)
    outcome = json.loads((tmp_path / "run" / "stages" / "00-translate" / "outcome.json").read_text())
    assert row.mean == outcome["selected"][STUDENT]["value"]
    history = [epoch[STUDENT] for epoch in outcome["history"]]
    assert row.mean == min(history) < history[0]
    assert Report.load(tmp_path / "run").rows == report.rows
    assert "| validation loss |" in report.markdown()
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    for fact in ("Lowest validation loss", "no test row was read", report.markdown(), 'student.embeddings(["a file"])'):
        assert fact in card
    for wrong in ("Test split", "predict("):
        assert wrong not in card
    student = load_student(tmp_path / "run", made.student.module)
    rows = {name: torch.as_tensor(made.data.inputs[name][:3]) for name in student.network.reads}
    assert student.embeddings(rows).shape == (3, 6)
    assert run(made, tmp_path / "run", resume=True).rows == report.rows


def test_a_run_without_labels_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = toy_recipe(TRANSLATE, data=without_labels())
    run(whole, tmp_path / "whole")
    left = iter([False] * 4 + [True])
    with pytest.raises(StoppedError):
        run(toy_recipe(TRANSLATE, data=without_labels()), tmp_path / "parts", stop=lambda: next(left, True))
    run(toy_recipe(TRANSLATE, data=without_labels()), tmp_path / "parts", resume=True)
    for name in ("metrics.jsonl", "results.json"):
        one, two = ((tmp_path / folder / name).read_text() for folder in ("whole", "parts"))
        drop = {"seconds", "peak_memory_mb"}
        if name == "results.json":
            one, two = ([{k: v for k, v in row.items() if k not in drop} for row in json.loads(t)] for t in (one, two))
        assert one == two


def test_methods_on_labels_are_refused_without_labels() -> None:
    made = toy_recipe(Stage(method="kd", epochs=1), data=without_labels())
    with raises(RecipeError, "test split"):
        assert isinstance(made.data, Dataset)
        prepare(made, made.data, torch.device("cpu"))


def test_with_labels_a_student_is_judged_by_probes(tmp_path: Path) -> None:
    data = toy_dataset(noise=0.5)
    made = toy_recipe(TRANSLATE, data=data)
    heard = Heard()
    report = run(made, tmp_path / "run", display=heard)
    row = report.rows[-1]
    measured = {one.metric: one.mean for one in row.metrics}
    assert (row.method, row.metric, set(measured)) == ("translate", "accuracy", {"kNN accuracy", "validation loss"})
    student = load_student(tmp_path / "run", made.student.module)
    found = probe(student.network, data)
    assert (row.mean, measured["kNN accuracy"]) == pytest.approx((found.linear, found.knn))
    assert row.mean > report.rows[0].mean + 0.2
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        assert (file["predicted"] == file["targets"]).mean() == row.mean
        assert file["probabilities"].shape == (row.test_rows, 4)


def _setup(**more: object) -> ExperimentSetup:
    length = Length(epochs=1, learning_rate=1e-3)
    networks = {"image": NetworkConfig(model="small-image"), "audio": NetworkConfig(model="small-audio")}
    return ExperimentSetup(
        data=toy_dataset({"image": (1, 8, 8), "audio": (1, 32, 32)}, rows=90),
        networks=networks,
        supervised=length,
        collaborate=length,
        specialise=length,
        distil=length,
        batch_size=24,
        **more,
    )


def test_a_last_layer_on_the_embedding_becomes_the_probe(tmp_path: Path) -> None:
    setup = _setup(multimodal=NetworkConfig(model="small-mm"))
    made = recipe(setup, "translate", student="image", teachers=None, seed=0, control=None)
    assert made.stages[-1].method.model_dump()["teacher_taps"] == {"mm": (), "audio": ()}
    report = run(made, tmp_path / "run")
    found = evaluate_folder(tmp_path / "run", made, "test")
    assert found["value"] == report.rows[-1].mean
    assert load_student(tmp_path / "run").predict(made.data.inputs["image"][:2])


def test_a_proxy_learns_from_all_teachers_and_the_student_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = _setup(proxy=NetworkConfig(model="small-audio"))
    made = recipe(setup, "proxy", student="image", teachers="cm", seed=0, control=None)
    assert list(made.teachers) == ["audio", "proxy"]
    assert [(stage.name, stage.learner, stage.teachers) for stage in made.stages[1:]] == [
        ("translate-proxy", "proxy", ("audio",)),
        ("translate", STUDENT, ("proxy",)),
    ]
    # A teacher of other inputs has no positions in common with the student.
    assert made.stages[-1].method.teacher_taps == {"proxy": ()}
    report = run(made, tmp_path / "run")
    assert [row.method for row in report.rows] == ["chance", "teacher:audio", "teacher:proxy", "proxy"]
    # Its logits were not trained, which is no fault of it.
    assert not [record for record in caplog.records if "'proxy'" in record.getMessage()]
    with raises(Exception, "ExperimentSetup(proxy=...)"):
        recipe(_setup(), "proxy", student="image", teachers="cm", seed=0, control=None)
