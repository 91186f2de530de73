"""Targets of a table's rows, of every kind of task: the kind is guessed from the cells, unless it is set."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdistill.batch import MISSING_TARGET, Task
from crossdistill.data.input_column import is_number
from crossdistill.data.table_cells import Faults
from crossdistill.data.table_file import Table

MOST_DISTINCT = 20
"""Up to so many rows, each may have a class of its own."""
BETWEEN_LABELS = re.compile(r"\s*[;|,]\s*")
"""Separates the labels of a row in one cell."""


def task_of(table: Table, columns: Sequence[str]) -> Task:
    """The task that the cells of the target columns fit.

    Lists, or several columns of 0 and 1, are multi-label; numbers that are not whole, or several columns of numbers, a
    regression; everything else is classes.
    """
    cells = [cell for column in columns for cell in table.columns[column] if cell is not None]
    if cells and all(isinstance(cell, list) for cell in cells):
        return "multi-label"
    if not cells or not all(map(is_number, cells)):
        return "classes"
    if len(columns) > 1:
        return "multi-label" if all(float(cell) in (0, 1) for cell in cells) else "regression"
    return "classes" if all(float(cell).is_integer() for cell in cells) else "regression"


def targets_of(
    table: Table, columns: Sequence[str], classes: Sequence[str], task: Task, faults: Faults
) -> tuple[Any, tuple[str, ...]]:
    """Targets as `Dataset.from_arrays` takes them, and the names of the classes or columns; None without a column."""
    if not columns:
        return None, ()
    if task == "classes":
        if len(columns) > 1:
            faults.add(
                f"data.target names {len(columns)} columns, and data.task=classes has one; set data.task to "
                "multi-label, regression or soft"
            )
            return None, ()
        return _classes(table, columns[0], classes, faults)
    if task == "multi-label" and len(columns) == 1:
        return [_labels(cell) for cell in table.columns[columns[0]]], tuple(classes)
    values = np.full((len(table), len(columns)), np.nan)
    for number, column in enumerate(columns):
        cells = table.columns[column]
        wrong = [row for row, cell in enumerate(cells) if cell is not None and not is_number(cell)]
        if wrong:
            faults.add(
                f"column {column!r} holds {str(cells[wrong[0]])!r} in {table.some(wrong)}; "
                f"data.task={task} needs numbers"
            )
            return None, ()
        values[:, number] = [np.nan if cell is None else float(cell) for cell in cells]
    return values, tuple(columns)


def _labels(cell: Any) -> list[str] | None:
    """The labels of one cell: a list, or texts between `;`, `|` or commas."""
    if cell is None:
        return None
    if isinstance(cell, list):
        return [str(label) for label in cell]
    return [label for label in BETWEEN_LABELS.split(str(cell)) if label]


def _classes(
    table: Table, column: str, classes: Sequence[str], faults: Faults
) -> tuple[list[Any] | None, tuple[str, ...]]:
    """Class names, `MISSING_TARGET` where the cell is empty, and the names in their order.

    Whole numbers are in the order of their values, other names in alphabetical order.
    """
    cells = table.columns[column]
    known = [cell for cell in cells if cell is not None]
    if not known:
        faults.add(f"column {column!r} is empty in every line; --set data.unlabelled=true reads no targets")
        return None, ()
    nested = next((row for row, cell in enumerate(cells) if isinstance(cell, list | dict)), None)
    if nested is not None:
        held = type(cells[nested]).__name__
        faults.add(
            f"column {column!r} holds a {held} in line {table.lines[nested]}; wanted one class a row (several: "
            "--set data.task=multi-label)"
        )
        return None, ()
    names = {cell: _class_name(cell) for cell in dict.fromkeys(known)}
    distinct = set(names.values())
    if len(distinct) == len(known) > MOST_DISTINCT:
        faults.add(
            f"column {column!r} holds another value in every line, so no class has two rows; name the column of the "
            "classes with data.target"
        )
    order = sorted(distinct, key=lambda name: (0, float(name), name) if is_number(name) else (1, 0.0, name))
    if classes:
        unknown = [name for name in order if name not in classes]
        if unknown:
            row = next(row for row, cell in enumerate(cells) if cell is not None and names[cell] == unknown[0])
            faults.add(
                f"column {column!r} holds {unknown[0]!r} in line {table.lines[row]}, which is not in data.classes: "
                f"{', '.join(classes)}"
            )
        order = list(classes)
    return [MISSING_TARGET if cell is None else names[cell] for cell in cells], tuple(order)


def _class_name(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
