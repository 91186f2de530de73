"""The end of a run: test results, predictions, and the student's folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossdistill.backends.saved import opened_by
from crossdistill.data.dataset import Dataset, rows_with_label
from crossdistill.data.metric_names import OF_PROBABILITIES, chosen_metrics
from crossdistill.data.targets import has_target
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.planning.plan import Plan
from crossdistill.report import PREDICTIONS, VALIDATION_LOSS, Measured, Report, Row
from crossdistill.run_folder.student_card import model_card
from crossdistill.run_folder.student_files import STUDENT_FOLDER
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.escaping import markdown
from crossdistill.runtime.files import atomic_file, remove_folder, storage_error
from crossdistill.student import save_student
from crossdistill.teacher import Live, TeacherBase
from crossdistill.training.evaluation import predict
from crossdistill.training.feature_results import by_features, with_measured
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions, chance


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished stage: its name and the content of its `outcome.json`."""

    stage: str
    about: Mapping[str, Any]


def finish(
    plan: Plan, out: Path, outcomes: Sequence[Outcome], devices: Devices, split: str = "test", memory: float = 0.0
) -> Report:
    """Evaluate once on the test split (or another); write predictions, the student, and `results.json` last.

    `memory` is the peak memory before the first stage, in MB; the student's row has the peak of the whole run.
    """
    recipe, dataset = plan.recipe, plan.dataset
    rows = dataset.splits[split]
    seconds = sum(float(outcome.about["seconds"]) for outcome in outcomes)
    devices.reset_peak()
    learner = Live(recipe.learner, plan.members[recipe.learner])
    method = recipe.method or recipe.stages[-1].method.name
    table = _Table(plan, split)
    likely = not OF_PROBABILITIES.isdisjoint(recipe.metrics)
    with_target = _fraction(has_target(dataset.targets), dataset)
    has_labels = bool(has_target(dataset.targets[rows]).any())
    results = [table.row("chance", chance(dataset, split), labelled=with_target)] if has_labels else []
    for name, teacher in plan.teachers.items():
        if not plan.trains_logits(name):
            predictions, measured = by_features(teacher, dataset, split, devices.device)
            if len(predictions):
                results.append(with_measured(table.row(f"teacher:{name}", predictions), measured))
            continue
        if TeacherBase.of(teacher).spec.logits != (len(dataset.classes),):
            continue  # an encoder, or one with other classes: accuracy is not defined
        source = teacher.select({Signal.LOGITS})
        predictions = predict(source, dataset, rows, devices.device, only=teacher.modalities, probabilities=likely)
        # A teacher whose inputs are absent in the whole split has no row; the run has shown that before.
        if len(predictions.targets):
            results.append(table.row(f"teacher:{name}", predictions, labelled=with_target))
    if plan.trains_logits(recipe.learner):
        student = predict(learner, dataset, rows, devices.device, only=learner.modalities, probabilities=True)
        measured = {}
    else:
        student, measured = by_features(learner, dataset, split, devices.device)
        measured |= validation_loss(plan, outcomes)
    memory = max(memory, devices.peak_memory(), *(float(outcome.about["peak_memory_mb"]) for outcome in outcomes))
    row = table.row(f"{method}@{recipe.control}" if recipe.control else method, student)
    row = with_measured(row, measured)
    results.append(replace(row, seconds=seconds, peak_memory_mb=memory, teachers=recipe.kind, control=recipe.control))
    report = Report(out, tuple(results))
    if devices.is_main:
        _save_predictions(out / PREDICTIONS, student)
        _save_learner(plan, report, split)
        report.save()
    devices.wait()
    return report


def _save_learner(plan: Plan, report: Report, split: str) -> None:
    """Write the student's folder with its card, in place of one that is there."""
    recipe, student = plan.recipe, plan.members[plan.recipe.learner]
    foreign = isinstance(recipe.student, Network)
    ema = next((job.stage.ema for job in reversed(plan.jobs) if recipe.learner in job.trained), None)
    of_networks = [network.licence for network in plan.members.values() if network.licence is not None]
    card = model_card(
        plan.dataset,
        f"{recipe.learner} student of {recipe.name}",
        report.markdown(),
        list(recipe.teachers),
        plan.parameters()[recipe.learner],
        foreign=foreign,
        ema=ema,
        of_networks=list(dict.fromkeys(of_networks)),
        opened_by=None if foreign else opened_by(student),
        measured=_measured(plan, report, split),
        embeds=not plan.trains_logits(recipe.learner) and not report.rows[-1].test_rows,
    )
    _remove(report.out / STUDENT_FOLDER)
    save_student(report.out / STUDENT_FOLDER, student, recipe.student, plan.dataset, card)


def _measured(plan: Plan, report: Report, split: str) -> str:
    """What the table of the card shows."""
    name = markdown(plan.dataset.name)
    if any(row.test_rows for row in report.rows):
        both = {"validation": "model selection used it too"}
        said = both.get(split, "model selection used the validation split only")
        return f"{split.capitalize()} split of {name}; {said}."
    if report.rows[-1].metric != VALIDATION_LOSS:
        return "Nothing: no test row was read."
    last = [job.stage for job in plan.jobs if plan.recipe.learner in job.trained][-1]
    which = "Lowest validation loss" if last.select == "best" else "Validation loss after the last epoch"
    return f"{which}, on the validation split of {name}; no test row was read."


def validation_loss(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The validation loss of the last stage that trained the student: of the selected epoch, or of the last one."""
    of_student = [
        outcome for job, outcome in zip(plan.jobs, outcomes, strict=True) if plan.recipe.learner in job.trained
    ]
    about = of_student[-1].about
    value = about["selected"].get(STUDENT, {}).get("value")
    value = about["history"][-1].get(STUDENT) if value is None and about["history"] else value
    return {} if value is None else {VALIDATION_LOSS: float(value)}


class _Table:
    """Makes the result rows of one run, which share most of their fields."""

    def __init__(self, plan: Plan, split: str) -> None:
        self._plan = plan
        self._split = "" if split == "test" else f"{split} "
        self._metrics = chosen_metrics(plan.dataset.task, plan.recipe.metrics)
        data = plan.recipe.data
        self._labelled = labelled_fraction(data) if isinstance(data, Dataset) else data.labelled

    def row(self, method: str, predictions: Predictions, *, labelled: float | None = None) -> Row:
        """The row of one source's predictions."""
        values = [(metric, measure(metric, predictions)) for metric in self._metrics]
        # A metric may be undefined, such as R2 of rows with equal targets.
        main, *others = [pair for pair in values if math.isfinite(pair[1])] or [("rows", float(len(predictions)))]
        return Row(
            data=self._plan.dataset.name,
            method=method,
            teachers=None,
            student=self._plan.recipe.learner,
            labelled=self._labelled if labelled is None else labelled,
            control=None,
            metric=self._split + main[0],
            mean=main[1],
            std=None,
            values=(main[1],),
            test_rows=len(predictions.targets),
            seconds=0.0,
            peak_memory_mb=0.0,
            metrics=tuple(Measured(self._split + name, value, None, (value,)) for name, value in others),
        )


def labelled_fraction(dataset: Dataset) -> float:
    """Fraction of the training rows whose label the student may use, to four digits."""
    return _fraction(rows_with_label(dataset), dataset)


def _fraction(rows: Tensor, dataset: Dataset) -> float:
    """Fraction of the training rows that a mask selects, to four digits."""
    return round(float(rows[dataset.splits["train"]].double().mean()), 4)


def _remove(student: Path) -> None:
    """Remove a student's folder that is damaged or was left by a killed process, before it is written again."""
    if student.is_dir():
        try:
            remove_folder(student)
        except OSError as error:
            raise storage_error(student, error) from error


def _save_predictions(path: Path, predictions: Predictions) -> None:
    import numpy as np

    values = {"ids": predictions.ids, "predicted": predictions.predicted, "targets": predictions.targets}
    if predictions.probabilities is not None:
        values["probabilities"] = predictions.probabilities
    if predictions.task != "classes":
        values["scores"] = predictions.scores()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in values.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
