"""Analysis of finished runs: its numbers are those of the networks at the end of the run, on the named split."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from builders import mst_distill, toy_recipe
from facts import raises
from safetensors.torch import load_file

from crossdistill import Dataset, Network, Recipe, Stage, load_student, run
from crossdistill.errors import ApplicabilityError, RunError, SettingError
from crossdistill.report import Report
from crossdistill.testing import toy_dataset
from crossdistill.training.analysis import Analysis, analyse
from crossdistill.training.calibration import calibration


def fused() -> tuple[Stage, ...]:
    """A teacher that trains first, and one that keeps its weights, are fused."""
    return (
        Stage(method="supervised", learner="teacher-0", teachers=(), epochs=2, batch_size=48),
        Stage(method={"name": "richkd-l", "alpha": 0.6}, epochs=1, batch_size=48),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(toy_recipe(*fused(), metrics=("accuracy", "ece", "nll", "brier")), out)
    return out


def recipe() -> Recipe:
    return toy_recipe(*fused(), metrics=("accuracy", "ece", "nll", "brier"))


def logits(network: Network, dataset: Dataset, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(dataset.batch(rows)).logits


def test_accuracies_are_those_of_the_results(finished: Path) -> None:
    found = analyse(finished, recipe())
    results = {row.method: row for row in Report.load(finished).rows}
    assert set(found.sources) == {"student", "teacher:teacher-0", "teacher:teacher-1", "fused"}
    for name in ("teacher:teacher-0", "teacher:teacher-1"):
        assert found.sources[name].accuracy == pytest.approx(results[name].mean)
        assert found.sources[name].rows == results[name].test_rows
    assert found.sources["student"].accuracy == pytest.approx(results["richkd-l"].mean)
    assert (found.split, found.reference) == ("test", "teacher:teacher-0")
    for name, row in (("student", "richkd-l"), ("teacher:teacher-0", "teacher:teacher-0")):
        measured = {one.metric: one.mean for one in results[row].metrics}
        values = {metric: getattr(found.sources[name], metric) for metric in ("ece", "nll", "brier")}
        assert measured == pytest.approx(values)
    assert not results["chance"].metrics, "it has no probabilities"


def test_the_student_and_the_fused_teacher_by_hand(finished: Path) -> None:
    made = recipe()
    dataset = made.data
    found = analyse(finished, made, split="validation", certain=0.3)
    rows = dataset.splits["validation"].sort().values
    student = load_student(finished, made.student).network
    own = calibration(logits(student, dataset, rows).softmax(1), dataset.targets[rows], certain=0.3)
    assert found.sources["student"].ece == pytest.approx(own.ece)
    assert found.sources["student"].cells == own.cells
    weights = next((finished / "stages").glob("00-*/teacher-0.safetensors"))
    first, second = (toy_recipe().teachers[name] for name in ("teacher-0", "teacher-1"))
    first.load_state_dict(load_file(weights))
    mixed = 0.6 * logits(first, dataset, rows) + 0.4 * logits(second, dataset, rows)
    by_hand = calibration(mixed.softmax(1), dataset.targets[rows], certain=0.3)
    assert found.sources["fused"].nll == pytest.approx(by_hand.nll, abs=1e-5)
    before = calibration(logits(first, dataset, rows).softmax(1), dataset.targets[rows], certain=0.3)
    wanted = by_hand.cells.confident_correct / before.cells.confident_correct - 1
    assert found.changes["fused"]["confident_correct"] == pytest.approx(wanted)


@pytest.mark.slow
def test_masked_teachers_are_those_of_the_results(tmp_path: Path) -> None:
    made = mst_distill(toy_dataset(), 2)
    run(made, tmp_path)
    found = analyse(tmp_path, made)
    for row in Report.load(tmp_path).rows:
        if row.method.startswith("teacher:"):
            assert found.sources[row.method].accuracy == pytest.approx(row.mean), row.method


def test_it_is_written_as_json_table_and_figure(finished: Path, tmp_path: Path) -> None:
    found = analyse(finished, recipe(), reference="teacher-1", rows=20)
    found.save(tmp_path)
    plain = json.loads((tmp_path / "test.json").read_text())
    assert plain["split"] == "test"
    assert plain["rows"] == 20
    assert plain["sources"]["student"]["cells"]["confident_correct"] == found.sources["student"].cells.confident_correct
    assert plain["changes"]["fused"].keys() == plain["sources"]["fused"]["cells"].keys()
    table = (tmp_path / "test.md").read_text()
    assert "teacher:teacher-1" in table
    assert f"{found.sources['fused'].ece:.4f}" in table
    texts = {e.text for e in ElementTree.parse(tmp_path / "test.svg").iter() if e.text}
    assert any(text.startswith("fused: ECE") for text in texts)


def test_names_are_escaped_in_the_figure(finished: Path, tmp_path: Path) -> None:
    found = analyse(finished, recipe(), rows=10)
    named = Analysis("<data>", "test", 10, 0.5, None, {"<script>\x1b": found.sources["student"]}, {})
    named.save(tmp_path)
    assert "<script>" not in (tmp_path / "test.svg").read_text()
    assert "\x1b" not in (tmp_path / "test.svg").read_text() + (tmp_path / "test.md").read_text()


def test_what_cannot_be_analysed(finished: Path, tmp_path: Path) -> None:
    with raises(SettingError, "'testing'", "'test'"):
        analyse(finished, recipe(), split="testing")
    with raises(SettingError, "'teacher-2'", "'teacher-1'"):
        analyse(finished, recipe(), reference="teacher-2")
    with raises(RunError, tmp_path):
        analyse(tmp_path, recipe())
    numbers = Dataset.from_arrays("numbers", {"first": torch.randn(60, 6)}, torch.randn(60, 1), task="regression")
    with raises(ApplicabilityError, "'regression'", "numbers"):
        analyse(finished, toy_recipe(data=toy_dataset()).model_copy(update={"data": numbers}))
