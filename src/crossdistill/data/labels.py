"""Targets as people hand them over (ids, names, truth values), made class numbers; or refused with what to do."""

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
    """Targets as class numbers, and the names of the classes.

    Names are numbered in their alphabetical order, truth values are the classes "False" and "True", and ids from 0 on
    number themselves. `classes` are the names, in the order of their numbers; or the ids that are classes, which are
    then numbered in that order.

    Raises:
        ShapeError: not one target for each example; says how to make one of one-hot rows.
        DataError: no class, in which row first; or ids with gaps, where `classes` does not say what they mean.
    """
    given = None if classes is None else _names(name, classes)
    if targets is None:
        return torch.full((rows,), MISSING_TARGET, dtype=torch.int64), tuple(map(str, given or ()))
    values = _plain(name, as_array(_listed(targets), f"dataset {name!r}: targets"))
    if values.dtype.kind == "U":
        return _named(name, values, given)
    if values.dtype.kind == "b":
        names = tuple(map(str, given)) if given is not None else ("False", "True")
        return torch.from_numpy(values.astype(np.int64)), names
    return _numbered(name, values, given)


def _listed(targets: Any) -> Any:
    """A list of single values with the type of each: as an array, numpy would make texts of ids among names."""
    if not isinstance(targets, list | tuple):
        return targets
    values = [one.item() if isinstance(one, np.generic) or _is_single(one) else one for one in targets]
    if any(isinstance(one, list | tuple | Tensor) or hasattr(one, "__array__") for one in values):
        return targets
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _names(name: str, classes: Iterable[Any]) -> tuple[str | int, ...]:
    found: tuple[Any, ...] = tuple(one.item() if isinstance(one, np.generic | Tensor) else one for one in classes)
    found = tuple(one for one in found if one != MISSING_TARGET)
    kinds = {type(one) for one in found}
    if isinstance(classes, str) or not kinds <= {str} | {int} or len(kinds) > 1:
        raise DataError(f"dataset {name!r}: classes are {found!r}; wanted the names of all classes, or their ids")
    twice = sorted({str(one) for one in found if found.count(one) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"dataset {name!r}: classes name {', '.join(twice)} twice")
    return found


def _plain(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Texts, truth values or whole numbers (int64), one for each example."""
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
    """How to make one target for each example of more."""
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
    """An array of Python objects that all are names, numbers or truth values, as that; -100 may be among names."""

    def kind(one: Any) -> str:
        if isinstance(one, str):
            return "text"
        if isinstance(one, bool | np.bool_):
            return "truth value"
        return "number" if isinstance(one, int | float | np.integer | np.floating) else type(one).__name__

    kinds = [kind(one) for one in values]
    missing = np.array([found == "number" and one == MISSING_TARGET for found, one in zip(kinds, values, strict=True)])
    known = sorted({found for found, none in zip(kinds, missing, strict=True) if not none})
    if len(known) == 1 and known[0] == "text":
        # As a text of its own; `_named` takes it for what it is.
        return np.array([str(MISSING_TARGET) if none else str(one) for none, one in zip(missing, values, strict=True)])
    if not known or known == ["number"]:
        return values.astype(np.float64) if any(isinstance(one, float) for one in values) else values.astype(np.int64)
    if known == ["truth value"] and not missing.any():
        return values.astype(bool)
    first = kinds[int(np.flatnonzero(~missing)[0])]
    row = next((row for row, found in enumerate(kinds) if found not in {"text", "truth value", "number"}), None)
    if row is None:
        row = next(row for row, found in enumerate(kinds) if found != first and not missing[row])
    also = "" if kinds[row] == first else f", the first is a {first}"
    raise DataError(
        f"{where}: row {row} holds {values[row]!r}, a {kinds[row]}{also}; {WANTED} (of a pandas column: "
        f".fillna({MISSING_TARGET}))"
    )


def _named(
    name: str, values: NDArray[Any], classes: tuple[str | int, ...] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    found, inverse = np.unique(values, return_inverse=True)
    known = [str(one) for one in found if one != str(MISSING_TARGET)]
    names = tuple(known) if classes is None else tuple(map(str, classes))
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise DataError(f"dataset {name!r}: targets {unknown} are not among the classes {list(names)}")
    number = {label: i for i, label in enumerate(names)} | {str(MISSING_TARGET): MISSING_TARGET}
    return torch.tensor([number[str(one)] for one in found], dtype=torch.int64)[torch.from_numpy(inverse)], names


def _numbered(
    name: str, values: NDArray[np.int64], classes: tuple[str | int, ...] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    known = values != MISSING_TARGET
    found = np.unique(values[known])
    if classes is not None and classes and isinstance(classes[0], int):
        ids = np.array(classes, dtype=np.int64)
        strange = np.setdiff1d(found, ids)
        if len(strange):
            row = int(np.isin(values, strange).argmax())
            raise DataError(f"dataset {name!r}: row {row} holds {values[row]}, which is none of the ids in `classes`")
        order = np.argsort(ids)
        numbers = np.where(known, order[np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)], values)
        return torch.from_numpy(numbers), tuple(map(str, classes))
    if classes is not None:
        return torch.from_numpy(values), tuple(map(str, classes))
    if len(found) and found[0] >= 0 and found[-1] != len(found) - 1:
        raise DataError(_gaps(name, found))
    return torch.from_numpy(values), tuple(str(number) for number in range(int(found.max(initial=-1)) + 1))


def _gaps(name: str, found: NDArray[np.int64]) -> str:
    """That some ids between 0 and the highest never occur, and what they may mean."""
    last = int(found[-1])
    missing = [number for number in range(min(last, len(found) + 8)) if number not in set(found.tolist())]
    shown = ", ".join(map(str, missing[:8])) + (", ..." if last + 1 - len(found) > 8 else "")
    ids = found.tolist() if len(found) <= 12 else f"[{', '.join(map(str, found[:6]))}, ...]"
    return (
        f"dataset {name!r}: targets hold the ids {ids}, and no row has {shown} ({last + 1 - len(found)} of the ids "
        f"from 0 to {last}): are they classes? Say it with `classes`: the ids that are (classes=sorted(set(targets)) "
        f"numbers them from 0 on), or the names of all {last + 1}"
    )
