"""Converts a user's targets (ids, names, booleans) to class numbers; errors say how to correct other targets."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.data.arrays import as_array
from crossdistill.errors import DataError, ShapeError

WANTED = f"wanted whole numbers or class names, and {MISSING_TARGET} where an example has none"


def as_targets(
    name: str, targets: Any, rows: int, classes: Iterable[Any] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Targets as class numbers (N,), and the names of the classes.

    Names are numbered in alphabetical order, booleans are the classes "False" and "True", and ids from 0 on are the
    class numbers. `classes` holds the names in the order of their numbers, or the ids that are classes, which are then
    numbered in that order.

    Raises:
        ShapeError: not one target for each example; says how to convert one-hot rows.
        DataError: a value is not a class (names the first row); or ids with gaps and no `classes` that explain them.
    """
    names = None if classes is None else _names(name, classes)
    if targets is None:
        return torch.full((rows,), MISSING_TARGET, dtype=torch.int64), tuple(map(str, names or ()))
    values = _plain(name, as_array(_listed(targets), f"dataset {name!r}: targets"))
    if values.dtype.kind == "U":
        return _named(name, values, names)
    if values.dtype.kind == "b":
        return torch.from_numpy(values.astype(np.int64)), ("False", "True") if names is None else tuple(map(str, names))
    return _numbered(name, values, names)


def _listed(targets: Any) -> Any:
    """A list of scalars as an object array, which keeps the type of each: numpy converts ids among names to texts."""
    if not isinstance(targets, list | tuple):
        return targets
    values = [value.item() if isinstance(value, np.generic) or _is_single(value) else value for value in targets]
    if any(isinstance(value, list | tuple | Tensor) or hasattr(value, "__array__") for value in values):
        return targets
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _names(name: str, classes: Iterable[Any]) -> tuple[str | int, ...]:
    labels: tuple[Any, ...] = tuple(
        label.item() if isinstance(label, np.generic | Tensor) else label for label in classes
    )
    labels = tuple(label for label in labels if label != MISSING_TARGET)
    kinds = {type(label) for label in labels}
    if isinstance(classes, str) or not kinds <= {str} | {int} or len(kinds) > 1:
        raise DataError(f"dataset {name!r}: classes are {labels!r}; wanted the names of all classes, or their ids")
    if len(set(labels)) < len(labels):
        twice = sorted({str(label) for label in labels if labels.count(label) > 1})
        raise DataError(f"dataset {name!r}: classes name {', '.join(twice)} twice")
    return labels


def _plain(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Targets as one array (N,) of texts, booleans or int64.

    Raises:
        ShapeError: not one target for each example.
        DataError: a value is neither a text, a boolean nor a whole number.
    """
    where = f"dataset {name!r}: targets"
    if values.ndim != 1:
        raise ShapeError(f"{where} have shape {values.shape}; wanted (examples,){_flat(values)}")
    if values.dtype == object:
        values = _of_objects(where, values)
    kind = values.dtype.kind
    if kind == "S":
        return np.char.decode(values, "utf-8")
    if kind in "Ub":
        return values
    if kind == "f":
        wrong = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{where} are {values.dtype}; {WANTED}; row {row} holds {values[row]}")
    elif kind not in "iu":
        raise DataError(f"{where} are {values.dtype}; {WANTED}")
    elif kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{where} hold {values.max()}, in row {int(values.argmax())}, which is no class")
    return values.astype(np.int64)


def _flat(values: NDArray[Any]) -> str:
    """How to convert an array of another shape to one target for each example; the end of an error's sentence."""
    if values.ndim == 2 and values.shape[1] == 1:
        return ": a single column is targets[:, 0]"
    if values.ndim == 2 and values.dtype.kind in "biuf" and len(values):
        ones = (values == 1).sum(1) == 1
        zeros = (values == 0).sum(1) == values.shape[1] - 1
        if (ones & zeros).all():
            return ": of one-hot rows they are targets.argmax(1)"
        row = int((~(ones & zeros)).argmax())
        return (
            f": row {row} holds {values[row].tolist()[:8]}, and an example has one class; of scores, targets.argmax(1)"
        )
    return ": one class for each example"


def _of_objects(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """An array of Python objects of one kind (names, numbers or booleans) with that type; -100 may be among names.

    Raises:
        DataError: values of several kinds; names the first row that differs.
    """

    def kind_of(value: Any) -> str:
        if isinstance(value, str):
            return "text"
        if isinstance(value, bool | np.bool_):
            return "truth value"
        return "number" if isinstance(value, int | float | np.integer | np.floating) else type(value).__name__

    kinds = [kind_of(value) for value in values]
    missing = np.array(
        [kind == "number" and value == MISSING_TARGET for kind, value in zip(kinds, values, strict=True)]
    )
    known = sorted({kind for kind, none in zip(kinds, missing, strict=True) if not none})
    if len(known) == 1 and known[0] == "text":
        # Missing targets become the text "-100", which `_named` recognises.
        return np.array(
            [str(MISSING_TARGET) if none else str(value) for none, value in zip(missing, values, strict=True)]
        )
    if not known or known == ["number"]:
        fractional = any(isinstance(value, float) for value in values)
        return values.astype(np.float64) if fractional else values.astype(np.int64)
    if known == ["truth value"] and not missing.any():
        return values.astype(bool)
    first = kinds[int(np.flatnonzero(~missing)[0])]
    row = next((row for row, kind in enumerate(kinds) if kind not in {"text", "truth value", "number"}), None)
    if row is None:
        row = next(row for row, kind in enumerate(kinds) if kind != first and not missing[row])
    also = "" if kinds[row] == first else f", the first is a {first}"
    raise DataError(
        f"{where}: row {row} holds {values[row]!r}, a {kinds[row]}{also}; {WANTED} (of a pandas column: "
        f".fillna({MISSING_TARGET}))"
    )


def _named(
    name: str, values: NDArray[Any], classes: tuple[str | int, ...] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    labels, inverse = np.unique(values, return_inverse=True)
    known = [str(label) for label in labels if label != str(MISSING_TARGET)]
    names = tuple(known) if classes is None else tuple(map(str, classes))
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise DataError(f"dataset {name!r}: targets {unknown} are not among the classes {list(names)}")
    number = {label: i for i, label in enumerate(names)} | {str(MISSING_TARGET): MISSING_TARGET}
    numbers = torch.tensor([number[str(label)] for label in labels], dtype=torch.int64)
    return numbers[torch.from_numpy(inverse)], names


def _numbered(
    name: str, values: NDArray[np.int64], classes: tuple[str | int, ...] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    known = values != MISSING_TARGET
    used = np.unique(values[known])
    if classes is not None and classes and isinstance(classes[0], int):
        ids = np.array(classes, dtype=np.int64)
        unknown = np.setdiff1d(used, ids)
        if len(unknown):
            row = int(np.isin(values, unknown).argmax())
            raise DataError(f"dataset {name!r}: row {row} holds {values[row]}, which is none of the ids in `classes`")
        order = np.argsort(ids)
        numbers = np.where(known, order[np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)], values)
        return torch.from_numpy(numbers), tuple(map(str, classes))
    if classes is not None:
        return torch.from_numpy(values), tuple(map(str, classes))
    if len(used) and used[0] >= 0 and used[-1] != len(used) - 1:
        raise DataError(_gaps(name, used))
    return torch.from_numpy(values), tuple(str(number) for number in range(int(used.max(initial=-1)) + 1))


def _gaps(name: str, used: NDArray[np.int64]) -> str:
    """The error text for ids between 0 and the largest that never occur, with ways to declare the classes."""
    last = int(used[-1])
    missing = [number for number in range(min(last, len(used) + 8)) if number not in set(used.tolist())]
    shown = ", ".join(map(str, missing[:8])) + (", ..." if last + 1 - len(used) > 8 else "")
    ids = used.tolist() if len(used) <= 12 else f"[{', '.join(map(str, used[:6]))}, ...]"
    return (
        f"dataset {name!r}: targets hold the ids {ids}, and no row has {shown} ({last + 1 - len(used)} of the ids "
        f"from 0 to {last}): are they classes? Say it with `classes`: the ids that are (classes=sorted(set(targets)) "
        f"numbers them from 0 on), or the names of all {last + 1}"
    )
