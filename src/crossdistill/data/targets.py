"""Targets of every kind of task: recognised, checked and standardised; their strata, and predictions in their form."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Task
from crossdistill.data.arrays import as_array
from crossdistill.data.labels import as_targets
from crossdistill.data.split import default_split
from crossdistill.errors import DataError, ShapeError, nearest

TASKS: tuple[Task, ...] = get_args(Task)
STRATA = 10
"""Parts of equal size of a number to predict, by which the rows of a regression are split."""
SUM_TOLERANCE = 1e-3
"""Largest difference between 1 and the sum of a row of soft labels."""


@dataclass(frozen=True, slots=True)
class TargetScale:
    """Mean and standard deviation of each column of a regression's targets over the training rows, in its unit."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def standardised(self, values: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Numbers in the unit of the targets as standard deviations from the mean."""
        return ((values.double() - self._tensor(self.mean, values)) / self._tensor(self.deviation, values)).float()

    def in_unit(self, values: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Outputs of a network as numbers in the unit of the targets."""
        return (values.double() * self._tensor(self.deviation, values) + self._tensor(self.mean, values)).float()

    def as_tensor(self) -> Float[Tensor, "2 C"]:
        """Both, for hashes."""
        return torch.tensor([self.mean, self.deviation], dtype=torch.float64)

    @staticmethod
    def _tensor(numbers: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=like.device)


def read_targets(
    name: str, targets: Any, rows: int, classes: Iterable[Any] | None, task: Task | None
) -> tuple[Tensor, tuple[str, ...], Task]:
    """A user's targets as a tensor, the names of its classes or columns, and the kind of task.

    Class numbers (N,) in int64 for "classes" and "none"; else (N, C) in float32, NaN where a target is missing. Without
    a `task`, targets with one class a row are classes, and all others are refused with the tasks that they fit.

    Raises:
        ShapeError: another shape than the task needs; without a task, the message lists those that fit.
        DataError: no such task, or values that are no targets of it; names the first row.
    """
    if task is not None and task not in TASKS:
        raise DataError(f"dataset {name!r}: there is no task {task!r}; {nearest(str(task), TASKS)}")
    where = f"dataset {name!r}: targets"
    if task == "none":
        if targets is not None:
            raise DataError(f"{where} are given, and task='none' has none; leave them out, or name another task")
        return (*as_targets(name, None, rows, classes), task)
    if task in (None, "classes"):
        _check_even(where, targets)
        try:
            numbers, labels = as_targets(name, targets, rows, classes)
        except (ShapeError, DataError) as error:
            fitting = [] if task else _fitting(targets)
            if not fitting:
                raise
            raise type(error)(f"{error}. Or say what they are: {' or '.join(fitting)}") from error
        return numbers, labels, "classes"
    if targets is None:
        raise DataError(f"{where} are None, and task={task!r} needs some; leave the task out for data without targets")
    names = None if classes is None else tuple(map(str, classes))
    if task == "multi-label":
        values, found = _label_rows(where, targets, names)
    else:
        values, found = _columns(where, targets, task), _column_names(targets)
        if task == "soft":
            _check_soft(where, values)
    names = names or found or _numbered_names(task, values.shape[1])
    if len(set(names)) < len(names):
        raise DataError(f"dataset {name!r}: classes name {', '.join(sorted({n for n in names if names.count(n) > 1}))}"
                        " twice")  # fmt: skip
    return torch.from_numpy(values.astype(np.float32)), names, task


def _check_even(where: str, targets: Any) -> None:
    """Refuse lists of different lengths, as lists of names are, for one class per row."""
    if not isinstance(targets, list | tuple) or not targets or not isinstance(targets[0], list | tuple):
        return
    lengths = [len(row) if isinstance(row, list | tuple) else None for row in targets]
    other = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
    if other is not None:
        held = "one value" if lengths[other] is None else f"shape ({lengths[other]},)"
        raise ShapeError(
            f"{where}: row {other} has {held}, row 0 has shape ({lengths[0]},); wanted one class per row. Or say what "
            "they are: task='multi-label' (a list of names for each row)"
        )


def _fitting(targets: Any) -> list[str]:
    """The tasks that targets fit which have not one class a row, as arguments with a description."""
    try:
        values = _columns("targets", targets, "regression")
    except (ShapeError, DataError):
        return ["task='multi-label' (lists of names)"] if _are_names(targets) else []
    known = values[~np.isnan(values).any(1)]
    fits = ["task='regression' (numbers to predict)"]
    if values.shape[1] > 1 and len(known):
        if np.isin(known, (0, 1)).all():
            fits.insert(0, "task='multi-label' (any number of labels a row)")
        if (known >= 0).all() and (abs(known.sum(1) - 1) <= SUM_TOLERANCE).all():
            fits.insert(0, "task='soft' (a distribution over classes)")
    elif np.asarray(targets).ndim == 1 and (known == np.floor(known)).all():
        return []
    return fits


def _are_names(targets: Any) -> bool:
    return all(not isinstance(row, str) and isinstance(row, Iterable) for row in targets if row is not None)


def _columns(where: str, targets: Any, task: Task) -> NDArray[np.float64]:
    """Numbers (N, C), NaN where missing."""
    values = as_array(targets, where)
    if values.dtype == object:
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} hold values that are no numbers, for task={task!r}: {error}") from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} are {values.dtype}; task={task!r} needs numbers, NaN where one is missing")
    if values.ndim == 1 and task == "regression":
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise ShapeError(f"{where} have shape {values.shape}; task={task!r} needs (examples, columns)")
    values = values.astype(np.float64)
    endless = np.flatnonzero(np.isinf(values).any(1))
    if len(endless):
        raise DataError(f"{where}: {len(endless)} rows hold Inf, first row {endless[0]}; NaN marks a missing number")
    return values


def _column_names(targets: Any) -> tuple[str, ...]:
    """The names of a data frame's columns, or of a series; empty where there are none."""
    columns = getattr(targets, "columns", None)
    if columns is not None:
        return tuple(map(str, columns))
    name = getattr(targets, "name", None)
    return (name,) if isinstance(name, str) else ()


def _numbered_names(task: Task, columns: int) -> tuple[str, ...]:
    if task != "regression":
        return tuple(map(str, range(columns)))
    return ("value",) if columns == 1 else tuple(f"value {number}" for number in range(columns))


def _check_soft(where: str, values: NDArray[np.float64]) -> None:
    known = ~np.isnan(values).any(1)
    partly = np.flatnonzero(~known & ~np.isnan(values).all(1))
    if len(partly):
        raise DataError(f"{where}: row {partly[0]} is NaN in part; a row without a distribution is NaN in all columns")
    wrong = np.flatnonzero(known & ((values < 0).any(1) | (abs(values.sum(1) - 1) > SUM_TOLERANCE)))
    if len(wrong):
        row = int(wrong[0])
        cure = (
            "divide each row by its sum" if (values[row] >= 0).all() and values[row].sum() else "of logits, a softmax"
        )
        raise DataError(
            f"{where}: {len(wrong)} rows are no distributions, first row {row}: {values[row].tolist()[:8]} with the "
            f"sum {values[row].sum():g}; wanted numbers from 0 on that sum to 1 ({cure})"
        )


def _label_rows(where: str, targets: Any, names: tuple[str, ...] | None) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Multi-label targets from a matrix of 0 and 1, or from a list of names for each row."""
    entries = None if hasattr(targets, "columns") or isinstance(targets, Tensor) else list(targets)
    if entries is None or not any(_is_list_of_names(row) for row in entries):
        values = _columns(where, targets, "multi-label")
        values[values == MISSING_TARGET] = np.nan
        wrong = np.flatnonzero(~(np.isnan(values) | np.isin(values, (0, 1))).all(1))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{where}: {len(wrong)} rows hold others than 0 and 1, first row {row}: {values[row].tolist()[:8]}; "
                "wanted a 0 or 1 for each label (NaN where unknown), or a list of names for each row"
            )
        return values, _column_names(targets)
    lists: list[list[str] | None] = []
    for number, row in enumerate(entries):
        if row is None or (isinstance(row, int | float) and (row == MISSING_TARGET or row != row)):
            lists.append(None)
        elif isinstance(row, str) or not isinstance(row, Iterable) or not all(isinstance(n, str) for n in row):
            raise DataError(
                f"{where}: row {number} holds {row!r}; wanted a list of names for each row (empty for none of them, "
                "None where unknown)"
            )
        else:
            lists.append(list(row))
    used = sorted({label for row in lists if row for label in row})
    found = names or tuple(used)
    unknown = sorted(set(used) - set(found))
    if unknown:
        raise DataError(f"{where} name {unknown[0]!r}, which is not among the classes; {nearest(unknown[0], found)}")
    number_of = {label: number for number, label in enumerate(found)}
    values = np.zeros((len(lists), len(found)))
    for number, labels in enumerate(lists):
        if labels is None:
            values[number] = np.nan
        else:
            values[number, [number_of[label] for label in labels]] = 1
    return values, found


def _is_list_of_names(row: Any) -> bool:
    return isinstance(row, str) or (isinstance(row, Iterable) and any(isinstance(entry, str) for entry in row))


def check_targets(targets: Tensor, classes: Sequence[str], task: Task, name: str) -> None:
    """Check the targets of a data set against its classes or columns.

    Raises:
        DataError: a target is no class, or a value is none of the task; names the first row.
        ShapeError: not one column for each name.
    """
    if task not in TASKS:
        raise DataError(f"dataset {name!r}: there is no task {task!r}; {nearest(str(task), TASKS)}")
    if task in ("classes", "none"):
        _check_classes(targets, classes, name)
        if task == "none" and bool(has_target(targets).any()):
            raise DataError(f"dataset {name!r}: task='none', and some rows have a target")
        return
    if targets.ndim != 2 or targets.shape[1] != len(classes) or targets.dtype != torch.float32:
        raise ShapeError(
            f"dataset {name!r}: targets are {targets.dtype} {tuple(targets.shape)}; task={task!r} needs float32 "
            f"(rows, {len(classes)}), a column for each of {', '.join(map(repr, classes[:4]))}"
        )


def _check_classes(targets: Tensor, classes: Sequence[str], name: str) -> None:
    wrong = ((targets != MISSING_TARGET) & ((targets < 0) | (targets >= len(classes)))).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        known = targets[targets != MISSING_TARGET]
        from_one = int(known.min()) == 1 and int(known.max()) == len(classes)
        raise DataError(
            f"dataset {name!r}: {len(wrong)} targets are not classes, first in row {row}: {int(targets[row])}; "
            f"wanted 0 to {len(classes) - 1}, or {MISSING_TARGET} for a row without a target"
            + ("; the targets start at 1: subtract 1" if from_one else "")
        )


def has_target(targets: Tensor) -> Bool[Tensor, " N"]:
    """The rows that have a target, in any column."""
    if targets.is_floating_point():
        known = ~targets.isnan()
        return known.any(1) if known.ndim > 1 else known
    return targets != MISSING_TARGET


def hidden(targets: Tensor, known: Bool[Tensor, " N"]) -> Tensor:
    """The targets, missing in all rows that are not `known`."""
    missing = float("nan") if targets.is_floating_point() else MISSING_TARGET
    return targets.where(known.view(-1, *[1] * (targets.ndim - 1)), missing)


def scale_of(name: str, targets: Tensor, classes: Sequence[str], train: Tensor) -> TargetScale:
    """The mean and deviation of each column over the training rows that have it.

    Raises:
        DataError: a column has one value, or none, in all training rows; names it.
    """
    mean, deviation = [], []
    for column, label in zip(targets[train].double().T, classes, strict=True):
        known = column[~column.isnan()]
        if not len(known) or float(known.std(correction=0)) == 0:
            held = f"is {float(known[0]):g} in every" if len(known) else "is missing in each"
            raise DataError(f"dataset {name!r}: {label!r} {held} training row, so it cannot be learnt; leave it out")
        mean.append(float(known.mean()))
        deviation.append(float(known.std(correction=0)))
    return TargetScale(tuple(mean), tuple(deviation))


def hashed_kind(task: Task, scale: TargetScale | None) -> dict[str, Tensor]:
    """What the hash of a data set has besides the targets; nothing for classes, whose hashes stay as they were."""
    return {} if task == "classes" else {f"task {task}": torch.zeros(0) if scale is None else scale.as_tensor()}


def strata(targets: Tensor, task: Task) -> tuple[Int64[Tensor, " N"], str]:
    """A number for each row, by which rows are split or labels hidden evenly; and what it stands for.

    Classes are their numbers, a distribution its largest class, labels the rarest of the row, a number its tenth.
    """
    if task in ("classes", "none"):
        return targets, "class"
    known = has_target(targets)
    if task == "soft":
        number, what = targets.nan_to_num().argmax(1), "largest class"
    elif task == "multi-label":
        positive = targets == 1
        rarity = torch.where(positive, positive.sum(0), torch.iinfo(torch.int64).max)
        number = torch.where(positive.any(1), rarity.argmin(1), targets.shape[1])
        what = "rarest label"
    else:
        first = targets[:, 0]
        edges = first[~first.isnan()].double().quantile(torch.linspace(0, 1, STRATA + 1, dtype=torch.float64))[1:-1]
        number, what = torch.bucketize(first.double().nan_to_num(), edges), "tenths of the target"
    return number.where(known, MISSING_TARGET), what


def split_evenly(
    name: str, targets: Tensor, classes: Sequence[str], task: Task, groups: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], str]:
    """The default split, stratified by `strata`; and a sentence that describes it.

    Raises:
        DataError: a target is none of the task, or groups that cannot be split.
    """
    check_targets(targets, classes, task, name)
    numbers, kind = strata(targets, task)
    return default_split(name, numbers, groups, seed, kind=kind)


def decoded(
    task: Task, logits: Float[Tensor, "N C"], scale: TargetScale | None
) -> tuple[Tensor, Float[Tensor, "N C"] | None]:
    """What a network's outputs predict, and the probabilities (None for a regression).

    A class (N,); for multi-label 0 or 1 for each label (N, C); for a regression numbers in the unit of the targets.
    """
    if task == "regression":
        return logits if scale is None else scale.in_unit(logits), None
    if task == "multi-label":
        probabilities = logits.sigmoid()
        return (probabilities > 0.5).long(), probabilities
    return logits.argmax(1), logits.movedim(1, -1).softmax(-1)


def text_of(task: Task, targets: Tensor, classes: Sequence[str], scale: TargetScale | None) -> Mapping[str, str]:
    """For each column of targets that are no classes, a few words on its values."""
    words = {}
    for number, label in enumerate(classes):
        column = targets[:, number]
        known = column[~column.isnan()]
        if task == "regression" and len(known):
            words[label] = f"{float(known.min()):g} to {float(known.max()):g}"
            if scale is not None:
                words[label] += f", mean {scale.mean[number]:.4g} ± {scale.deviation[number]:.4g} on train"
        elif len(known):
            words[label] = f"{float(known.mean()):.1%}"
    return words
