"""What a run leaves behind: the outcomes of its stages, test results, and the student's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.data.dataset import Dataset
from crossdistill.devices import Devices
from crossdistill.evaluation import Predictions, chance, predict
from crossdistill.network import Network
from crossdistill.outputs import Want
from crossdistill.plan import Plan
from crossdistill.report import PREDICTIONS, Report, Row
from crossdistill.storage import atomic_file, remove_folder, storage_error
from crossdistill.student import model_card, save_student
from crossdistill.student_folder import STUDENT_FOLDER
from crossdistill.teacher import Live


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished stage: its name and what its `outcome.json` says."""

    stage: str
    about: Mapping[str, Any]


def finish(plan: Plan, out: Path, outcomes: Sequence[Outcome], where: Devices, split: str = "test") -> Report:
    """Read the test split (or another), once; write predictions, the student, and last of all `results.json`."""
    recipe, dataset = plan.recipe, plan.dataset
    rows = dataset.splits[split]
    seconds = sum(float(outcome.about["seconds"]) for outcome in outcomes)
    memory = max((float(outcome.about["peak_memory_mb"]) for outcome in outcomes), default=0.0)
    learner = Live(recipe.learner, plan.members[recipe.learner])
    method = recipe.method or recipe.stages[-1].method.name
    table = _Table(plan, len(rows), "accuracy" if split == "test" else f"{split} accuracy")
    results = [table.row("chance", chance(dataset, split), 0.0, 0.0, labelled=1.0)]
    for name, teacher in plan.teachers.items():
        found = predict(teacher.asked({Want.LOGITS}), dataset, rows, where.device)
        results.append(table.row(f"teacher:{name}", found.accuracy(), 0.0, 0.0, labelled=1.0))
    student = predict(learner, dataset, rows, where.device)
    label = f"{method}@{recipe.control}" if recipe.control else method
    results.append(table.row(label, student.accuracy(), seconds, memory, teachers=recipe.kind, control=recipe.control))
    report = Report(out, tuple(results))
    if where.is_main:
        _save_predictions(out / PREDICTIONS, student)
        parameters = plan.parameters()[recipe.learner]
        title = f"{recipe.learner} student of {recipe.name}"
        foreign = isinstance(recipe.student, Network)
        card = model_card(dataset, title, report.markdown(), list(recipe.teachers), parameters, foreign=foreign)
        _remove(out / STUDENT_FOLDER)
        save_student(out / STUDENT_FOLDER, plan.members[recipe.learner], recipe.student, dataset, card)
        report.save()
    where.wait()
    return report


class _Table:
    """Rows of one run share most of their fields."""

    def __init__(self, plan: Plan, test_rows: int, metric: str) -> None:
        self._plan = plan
        self._metric = metric
        self._test_rows = test_rows
        data = plan.recipe.data
        self._labelled = labelled_fraction(data) if isinstance(data, Dataset) else data.labelled

    def row(
        self,
        method: str,
        accuracy: float,
        seconds: float,
        memory: float,
        *,
        labelled: float | None = None,
        teachers: str | None = None,
        control: str | None = None,
    ) -> Row:
        """One line of results."""
        return Row(
            data=self._plan.dataset.name,
            method=method,
            teachers=teachers,
            student=self._plan.recipe.learner,
            labelled=self._labelled if labelled is None else labelled,
            control=control,
            metric=self._metric,
            mean=accuracy,
            std=None,
            values=(accuracy,),
            test_rows=self._test_rows,
            seconds=seconds,
            peak_memory_mb=memory,
        )


def labelled_fraction(dataset: Dataset) -> float:
    """Fraction of training rows whose label the student may use, to four digits."""
    if dataset.labelled is None:
        return 1.0
    return round(float(dataset.labelled[dataset.splits["train"]].double().mean()), 4)


def _remove(student: Path) -> None:
    """A student that is there is of a kill at the very end, or damaged: it is written again."""
    if student.is_dir():
        try:
            remove_folder(student)
        except OSError as error:
            raise storage_error(student, error) from error


def _save_predictions(path: Path, found: Predictions) -> None:
    import numpy as np

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, ids=found.ids.numpy(), predicted=found.predicted.numpy(), targets=found.targets.numpy()
        )
