"""Results of finished cells: rows merged over seeds, and the correctness of each test prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.compare.feasibility import Feasibility
from crossdistill.compare.grid import Cell, Setting
from crossdistill.errors import RunError
from crossdistill.report import PREDICTIONS, Report, Row, finished, merged


@dataclass(frozen=True, slots=True)
class Answers:
    """One cell's predictions: the ids of the test rows, and whether each prediction is right.

    For other tasks than classes `right` is the score of each row (`Predictions.scores`): larger is better.
    """

    ids: NDArray[np.int64]
    right: NDArray[np.bool_] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a setting. Seconds are the mean of a run with all stages that it needs, as if it shared none."""

    seconds: float
    peak_memory_mb: float
    parameters: int
    """Number of parameters of the student."""
    trained: int
    """Number of parameters that train in any stage of the run."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The results of all finished cells of a comparison."""

    rows: tuple[Row, ...]
    answers: Mapping[Setting, Mapping[int, Answers]]
    """Predictions by setting and seed."""
    costs: Mapping[Setting, Cost]


def collect(feasibility: Feasibility, folder: Path) -> Collected:
    """Read the results of every finished cell in the folder of cells."""
    rows: list[tuple[Cell, tuple[str, ...], list[Row]]] = []
    answers: dict[Setting, dict[int, Answers]] = {}
    costs: dict[Setting, Cost] = {}
    for number, feasible in feasibility.feasible.items():
        cell = feasibility.cells[number]
        if not finished(folder / cell.name):
            continue
        cell_rows = list(Report.load(folder / cell.name).rows)
        rows.append((cell, feasible.alone, cell_rows))
        answers.setdefault(cell.setting, {})[cell.seed] = _answers(folder / cell.name / PREDICTIONS)
        before = costs.get(cell.setting, Cost(0.0, 0.0, feasible.parameters, feasible.trained))
        costs[cell.setting] = replace(
            before,
            seconds=before.seconds + cell_rows[-1].seconds,
            peak_memory_mb=max(before.peak_memory_mb, cell_rows[-1].peak_memory_mb),
        )
    costs = {key: replace(cost, seconds=cost.seconds / len(answers[key])) for key, cost in costs.items()}
    return Collected(tuple(_merged(rows)), answers, costs)


def _answers(path: Path) -> Answers:
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, predicted, targets = (file[name] for name in ("ids", "predicted", "targets"))
            scores = file["scores"] if "scores" in file.files else None
        if scores is not None:
            if ids.dtype != np.int64 or scores.dtype != np.float64 or scores.shape != (len(ids),):
                raise ValueError("wanted a vector of scores, one for each of the ids")
            return Answers(ids, scores)
        if any(array.dtype != np.int64 or array.shape != (len(ids),) for array in (ids, predicted, targets)):
            raise ValueError("wanted three int64 vectors of equal length: ids, predicted, targets")
    except Exception as error:  # damage can make zip, zlib and NumPy raise anything
        raise RunError(f"{path} is damaged: {error}; restore it by repeating the comparison with --resume") from error
    return Answers(ids, predicted == targets)


def _merged(cells: Sequence[tuple[Cell, tuple[str, ...], list[Row]]]) -> list[Row]:
    """All cells' rows: chance and teachers once for each student and seed, then the methods."""
    seed_rows: dict[tuple[object, ...], tuple[int, Row]] = {}

    def add(row: Row, seed: int) -> None:
        key = (seed, row.method, row.teachers, row.student, row.labelled, row.control)
        seed_rows.setdefault(key, (seed, row))

    for cell, alone, rows in cells:
        for row in rows:
            # Teachers that trained together with the student are not comparable with teachers that trained alone.
            if not row.method.startswith("teacher:") or row.method.removeprefix("teacher:") in alone:
                add(row, cell.seed)
    students = dict.fromkeys(cell.student for cell, _, _ in cells)
    for cell, _, rows in cells:
        if cell.method == "supervised" and cell.labelled == 1.0:
            # A network that was trained alone is the (possible) teacher of the students of other modalities.
            for other in students:
                if other != cell.student:
                    name = f"teacher:{cell.student}"
                    add(replace(rows[-1], method=name, student=other, seconds=0.0, peak_memory_mb=0.0), cell.seed)
    return merged([row for _, row in sorted(seed_rows.values(), key=lambda pair: pair[0])])
