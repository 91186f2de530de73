"""Whole comparisons at tiny sizes, their cells one after another in this process."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from facts import raises, states
from locks import held_elsewhere
from torch import Tensor

from crossdistill import Batch, Dataset, Report, Stage
from crossdistill.compare import Grid, compare
from crossdistill.compare import cell as worker
from crossdistill.compare import run as comparing
from crossdistill.compare.dry_run import dry_run_report
from crossdistill.compare.executors.local import Message, Work, attempted
from crossdistill.compare.sweep import FIRST_SEED
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.errors import NonFiniteError, RecipeError, ResumeError, RunError
from crossdistill.methods.specialise import Specialise
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.recipes.stages import PLANS, MethodPlan, from_labels
from crossdistill.run_folder.folder import LOCK
from crossdistill.runtime.files import read_json, read_sealed, write_sealed
from crossdistill.training import runner

pytestmark = pytest.mark.usefixtures("digits")


class Here:
    """An executor with one worker, in this process."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.begun: list[Any] = []

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """See `Executor`."""
        while (task := choose()) is not None:
            self.begun.append(tasks[task])
            messages: list[Message] = []
            last = attempted(
                self.work,
                tasks[task],
                lambda kind, value, task=task, messages=messages: messages.append(Message(0, task, kind, value)),
            )
            yield from messages
            yield Message(0, task, *last)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    """The executors of a comparison, each in this process."""
    executors: list[Here] = []

    def executor_for(on: str, work: Work, jobs: int | None, most: int, out: Path) -> tuple[Here, int]:
        executors.append(Here(work))
        return executors[-1], 1

    monkeypatch.setattr(comparing, "executor_for", executor_for)
    return executors


def grid(**changes: Any) -> Grid:
    return Grid.parse(
        "av-digits", **{"methods": "supervised,kd", "students": "image", "seeds": 2, "tiny": True, **changes}
    )


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the stages that were trained."""
    keys: list[str] = []
    fit = runner.fit

    def counting(plan: Any, job: Any, *rest: Any) -> Any:
        keys.append(job.key)
        return fit(plan, job, *rest)

    monkeypatch.setattr(runner, "fit", counting)
    return keys


def taps_that_are_not_there(setup: ExperimentSetup, student: str, teachers: Any) -> tuple[Stage, ...]:
    method = Specialise(taps=dict.fromkeys(teachers, ("no_such_layer",)))
    return (*from_labels(setup, teachers), Stage(name="specialise", method=method, epochs=1, trains=()))


def test_every_stage_is_trained_once_and_shared(tmp_path: Path, here: list[Here], fitted: list[str]) -> None:
    made = grid(labelled="1.0,0.1", control="shuffled")
    comparison = compare(made, tmp_path / "c")
    assert len(here[0].begun) == len(made.cells()) == 10
    # Two seeds of: the teacher, the student alone on all and on few labels, KD on both, and the control.
    assert len(fitted) == len(set(fitted)) == 2 * (1 + 2 + 2 + 1)
    rows = {(r.method, r.teachers, r.labelled): r for r in Report.load(tmp_path / "c").rows}
    assert set(rows) == {
        ("chance", None, 1.0), ("teacher:mm", None, 1.0), ("supervised", None, 1.0), ("kd", "mm", 1.0),
        ("supervised", None, 0.1), ("kd", "mm", 0.1), ("kd@shuffled", "mm", 0.1),
    }  # fmt: skip
    assert all(len(row.values) == 2 for row in rows.values())
    assert {pair.setting.title for pair in comparison.findings.pairwise.pairs} == {"kd (mm)"}
    assert comparison.findings.failed == comparison.findings.refused == {}
    assert "kd@shuffled" in comparison.text()
    cost = next(cost for setting, cost in comparison.findings.collected.costs.items() if setting.title == "kd (mm)")
    assert cost.trained > cost.parameters > 0


def test_a_finished_comparison_repeats_nothing(tmp_path: Path, here: list[Here], fitted: list[str]) -> None:
    compare(grid(seeds=1), tmp_path / "c")
    first = (tmp_path / "c" / "results.json").read_bytes()
    fitted.clear()
    compare(grid(seeds=1), tmp_path / "c", resume=True)
    assert fitted == []
    assert len(here) == 1, "no executor was created again"
    assert (tmp_path / "c" / "results.json").read_bytes() == first


def test_a_failed_cell_is_reported_and_resuming_runs_it_alone(
    tmp_path: Path, here: list[Here], fitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.run

    def failing(recipe: Any, out: Path, **rest: Any) -> Any:
        if out.name == "kd-image-mm-1-seed0":
            raise NonFiniteError("NaN in batch 7")
        return real(recipe, out, **rest)

    monkeypatch.setattr(worker, "run", failing)
    findings = compare(grid(), tmp_path / "c").findings
    assert (findings.failed, findings.refused) == ({"kd-image-mm-1-seed0": "NaN in batch 7"}, {})
    assert next(row for row in findings.collected.rows if row.method == "kd").values == (pytest.approx(0, abs=1),)
    assert "kd-image-mm-1-seed0" in (tmp_path / "c" / "report.md").read_text()
    monkeypatch.setattr(worker, "run", real)
    fitted.clear()
    whole = compare(grid(), tmp_path / "c", resume=True).findings
    assert [task["cell"]["method"] for task in here[-1].begun] == ["kd"]
    assert len(fitted) == 2
    assert whole.failed == {}
    assert len(next(row for row in whole.collected.rows if row.method == "kd").values) == 2


def test_a_method_that_cannot_apply_is_refused_before_anything_trains_and_the_rest_runs(
    tmp_path: Path, here: list[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANS, "hopeless", MethodPlan(taps_that_are_not_there, "mm"))
    findings = compare(grid(methods="supervised,hopeless,kd", seeds=1), tmp_path / "c").findings
    assert list(findings.refused) == ["hopeless-image-mm-1-seed0"]
    assert "no_such_layer" in findings.refused["hopeless-image-mm-1-seed0"]
    assert findings.failed == {}
    assert [task["cell"]["method"] for task in here[0].begun] == ["supervised", "kd"]
    assert not (tmp_path / "c" / "cells" / "hopeless-image-mm-1-seed0").exists()
    text = (tmp_path / "c" / "report.md").read_text()
    assert "| hopeless | mm | cannot apply |" in text
    assert "## Cannot apply" in text
    assert "## Failed" not in text


def test_if_no_cell_can_run_the_folder_stays_free(
    tmp_path: Path, here: list[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANS, "hopeless", MethodPlan(taps_that_are_not_there, "mm"))
    with raises(RecipeError, "no_such_layer"):
        compare(grid(methods="hopeless"), tmp_path / "c")
    with raises(RecipeError, "field"):
        compare(grid(sweep=("temprature=1,2",)), tmp_path / "c")
    assert here == []
    compare(grid(methods="supervised", seeds=1), tmp_path / "c")


@pytest.mark.slow
def test_tuning_reads_no_test_row_and_its_choice_is_used_by_every_seed(
    tmp_path: Path, here: list[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, set[int]] = {"trials": set(), "cells": set()}
    phase = ["trials"]
    batch, train = Dataset.batch, worker.train

    def spying(self: Dataset, rows: Tensor, *rest: Any, **more: Any) -> Batch:
        read[phase[0]] |= set(rows.tolist())
        return batch(self, rows, *rest, **more)

    def telling(task: dict[str, Any], send: Any) -> str:
        phase[0] = "trials" if "tuning" in Path(task["out"]).parts else "cells"
        return train(task, send)

    monkeypatch.setattr(Dataset, "batch", spying)
    monkeypatch.setattr("crossdistill.compare.run.train", telling)
    made = grid(sweep=("temperature=1,4",), control="shuffled")
    findings = compare(made, tmp_path / "c").findings
    trials, cells = (executor.begun for executor in here)
    assert len(trials) == 2
    assert {task["cell"]["seed"] for task in trials} == {FIRST_SEED}
    assert {task["split"] for task in trials} == {"validation"}

    splits = AvDigitsConfig().tiny().load().splits
    test, validation = set(splits["test"].tolist()), set(splits["validation"].tolist())
    assert validation <= read["trials"]
    assert not test & read["trials"]
    assert test <= read["cells"], "the spy records the rows"

    chosen = {choice["method"]: choice for choice in findings.tuning}
    assert [len(trial["seeds"]) for trial in chosen["kd"]["trials"]] == [1, 1]
    assert (chosen["supervised"]["chosen"], chosen["supervised"]["missing"]) == ({}, ["temperature"])
    best = max(chosen["kd"]["trials"], key=lambda trial: trial["validation_accuracy"][0])
    assert chosen["kd"]["chosen"] == best["values"]
    used = {tuple(task["cell"]["settings"]) for task in cells if task["cell"]["method"] == "kd"}
    assert used == {tuple(chosen["kd"]["settings"])}
    assert len([task for task in cells if task["cell"]["control"]]) == 2
    assert json.loads((tmp_path / "c" / "tuning.json").read_text()) == list(findings.tuning)
    assert findings.split_moves is False
    assert compare(made, tmp_path / "c", resume=True).findings.tuning == findings.tuning
    assert len(here) == 2, "neither trials nor cells are repeated"


def test_a_setting_whose_trials_failed_fails_and_the_rest_is_compared(
    tmp_path: Path, here: list[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.run

    def failing(recipe: Any, out: Path, **rest: Any) -> Any:
        if out.parent.name == "tuning" and out.name.startswith("kd"):
            raise NonFiniteError("NaN in batch 7")
        return real(recipe, out, **rest)

    monkeypatch.setattr(worker, "run", failing)
    findings = compare(grid(sweep=("learning_rate=0.001,0.01",), seeds=1), tmp_path / "c").findings
    assert list(findings.failed) == ["kd-image-mm-1-seed0"]
    states(findings.failed["kd-image-mm-1-seed0"], "trials", "NaN in batch 7")
    assert [row.method for row in findings.collected.rows if row.seconds] == ["supervised"]


def test_a_budget_is_kept_when_it_was_chosen(tmp_path: Path, here: list[Here], monkeypatch: pytest.MonkeyPatch) -> None:
    made = grid(methods="supervised", budget=60.0, seeds=2)
    findings = compare(made, tmp_path / "c").findings
    assert (findings.pick.seeds, findings.pick.epochs) == (2, 1.0)
    assert "Picked for a budget of 60 minutes: 2 seeds" in (tmp_path / "c" / "report.md").read_text()
    path = tmp_path / "c" / "budget.json"
    picked = read_sealed(path)
    path.write_text(json.dumps(read_json(path) | {"seeds": 1}))
    with raises(RunError, "budget.json"):
        compare(made, tmp_path / "c", resume=True)
    write_sealed(path, picked | {"seeds": 1})
    monkeypatch.setattr("crossdistill.compare.run.fitted", lambda *rest: pytest.fail("the budget was fitted again"))
    again = compare(made, tmp_path / "c", resume=True).findings
    assert again.grid.seeds == 1


def test_another_comparison_in_the_folder_is_refused(tmp_path: Path, here: list[Here]) -> None:
    compare(grid(methods="supervised", seeds=2), tmp_path / "c")
    with raises(RunError, "--resume"):
        compare(grid(methods="supervised", seeds=2), tmp_path / "c")
    with raises(ResumeError, "seeds", 2, 1):
        compare(grid(methods="supervised", seeds=1), tmp_path / "c", resume=True)
    with raises(ResumeError, "methods", "'supervised'", "'kd'"):
        compare(grid(methods="kd", seeds=2), tmp_path / "c", resume=True)
    with raises(ResumeError, "budget", None, 60):
        compare(grid(methods="supervised", seeds=2, budget=60.0), tmp_path / "c", resume=True)


def test_a_cell_that_cannot_run_is_refused_by_itself_and_a_lost_setting_ends_all(
    tmp_path: Path, here: list[Here], fitted: list[str]
) -> None:
    wrong = ("stages.kdsvd.method.taps=[conv1]",)
    findings = compare(grid(methods="supervised,kdsvd", seeds=1, settings=wrong), tmp_path / "c").findings
    assert list(findings.refused) == ["kdsvd-image-mm-1-seed0"]
    states(findings.refused["kdsvd-image-mm-1-seed0"], "conv1")
    assert len(fitted) == 1
    with raises(RecipeError, "'kdsv'", "'kdsvd'"):
        compare(grid(methods="kdsvd", settings=("stages.kdsv.epochs=1",)), tmp_path / "d")


def test_a_comparison_may_grow_and_repeats_nothing(tmp_path: Path, here: list[Here], fitted: list[str]) -> None:
    compare(grid(methods="supervised", seeds=1), tmp_path / "c")
    compare(grid(methods="supervised,kd", seeds=2), tmp_path / "c", resume=True)
    assert len(fitted) == len(set(fitted)) == 2 * 3
    assert {row.method for row in Report.load(tmp_path / "c").rows} == {"chance", "teacher:mm", "supervised", "kd"}
    compare(grid(methods="supervised,kd", seeds=2, labelled="1.0,0.1"), tmp_path / "c", resume=True)
    assert len(fitted) == len(set(fitted)) == 2 * 5


def test_the_order_of_settings_does_not_matter(tmp_path: Path, here: list[Here], fitted: list[str]) -> None:
    settings = ("channels_last=true", "checkpoints.keep=2")
    compare(grid(methods="supervised", seeds=1, settings=settings), tmp_path / "c")
    compare(grid(methods="supervised", seeds=1, settings=settings[::-1]), tmp_path / "c", resume=True)
    assert len(fitted) == 1
    with raises(ResumeError, "settings"):
        compare(grid(methods="supervised", seeds=1, settings=settings[:1]), tmp_path / "c", resume=True)


def test_a_folder_in_use_is_refused_with_its_process(tmp_path: Path, here: list[Here]) -> None:
    held_elsewhere(tmp_path / "c" / LOCK)
    with raises(RunError, "process 7", "elsewhere"):
        compare(grid(methods="supervised", seeds=1), tmp_path / "c")


def test_a_dry_run_states_shared_stages_time_and_what_cannot_apply(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PLANS, "hopeless", MethodPlan(taps_that_are_not_there, "mm"))
    text = dry_run_report(
        grid(methods="supervised,kd,hopeless", labelled="1.0,0.1", sweep=("temperature=1,4",)), 2, "local"
    )
    assert "12 cells on 2 seeds; nothing is trained or written" in text
    assert "supervised-mm (for 2), kd" in text
    states(text, "12 stages", "10")
    assert "kd (mm), image, 100% of the labels: 2 trials" in text
    assert "has no temperature, skipped" in text
    assert "with 2 workers, from a few timed steps" in text
    assert "hopeless-image-mm-1-seed0: stages.specialise: " in text
