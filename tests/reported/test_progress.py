"""What a run shows while it goes on, and what it leaves of it."""

import json
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import Heard
from test_measures import small, trained_first

from crossdistill import Stage, run
from crossdistill.runtime import progress as display
from crossdistill.runtime.progress import attended, counted
from crossdistill.training import runner
from crossdistill.training.monitor import metrics_text


def test_d_the_bar_says_epoch_loss_metric_and_speed(tmp_path: Path) -> None:
    shown = Heard()
    run(trained_first(), tmp_path / "run", display=shown)
    last = shown.statuses[-1]
    assert last.startswith("epoch 2/2, loss ")
    assert all(part in last for part in ("validation: loss ", "accuracy 0.", "rows/s"))
    assert "validation" not in shown.statuses[0]
    (end,) = [line for line in shown.notes if line.startswith("2 epochs")]
    assert "lowest validation loss: student" in end
    assert "accuracy 0." in end


@pytest.mark.parametrize(("terminal", "progress", "wanted"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_d_progress_is_shown_where_somebody_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, progress: bool, wanted: int
) -> None:
    made: list[object] = []

    class Watched(display.Terminal):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(runner, "Terminal", Watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    run(small(Stage(method="supervised", epochs=1)), tmp_path / "run", progress=progress)
    assert len(made) == wanted


def test_d_a_notebook_is_no_terminal_and_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not attended()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    assert attended()


def test_d_every_epoch_leaves_its_metric_and_its_time(tmp_path: Path) -> None:
    run(trained_first(), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "validation"]
    assert len(epochs) == 10
    assert all(0 <= line["accuracy"] <= 1 and line["student"] > 0 for line in epochs)
    times = [json.loads(line) for line in (tmp_path / "run" / "times.jsonl").read_text().splitlines()]
    assert [(one["stage"], one["epoch"]) for one in times] == [(one["stage"], one["epoch"]) for one in epochs]
    moments = [datetime.fromisoformat(one["time"]) for one in times]
    assert moments == sorted(moments)
    assert moments[0].tzinfo is not None
    assert all(one["seconds"] > 0 and one["rows_per_second"] > 0 for one in times)


def test_d_the_accuracy_is_that_of_the_learner(tmp_path: Path) -> None:
    """The last epoch's, where the last epoch's weights are kept, is what the validation split gives afterwards."""
    report = run(small(Stage(method="supervised", epochs=2, select="last")), tmp_path / "run", split="validation")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "validation"
    assert lines[-1]["accuracy"] == pytest.approx(report.rows[-1].mean)


def test_d_probabilities_are_saved_beside_predictions(tmp_path: Path) -> None:
    run(trained_first(), tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions.npz") as found:
        likely, predicted = found["probabilities"], found["predicted"]
    assert likely.shape == (len(predicted), 4)
    assert likely.sum(1) == pytest.approx(np.ones(len(predicted)), abs=1e-5)
    assert (likely.argmax(1) == predicted).all()


def test_d_messages_name_loss_and_accuracy_and_count_well() -> None:
    assert metrics_text({"epoch": 3, "student": 0.5, "accuracy": 0.25}) == "loss 0.5000, accuracy 0.250"
    assert metrics_text({"mm@fc1": 0.5, "mm@concat": 1.5}) == "loss mm@fc1 0.5000, loss mm@concat 1.5000"
    said = [counted(number, "worker") for number in (0, 1, 2, 1000)]
    assert said == ["0 workers", "1 worker", "2 workers", "1,000 workers"]
