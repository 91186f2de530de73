"""Converts a user's arrays (numpy, torch, pandas, nested lists) to tensors; errors say how to correct other values."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.row_source import Rows, checked, is_row_source
from crossdistill.data.variable_length import told_lengths
from crossdistill.errors import DataError, ShapeError

CURES = {
    "c": "split it into real numbers, such as numpy.stack([x.real, x.imag], axis=1)",
    "M": "make numbers of it, such as (x - x.min()) / numpy.timedelta64(1, 's')",
    "m": "make numbers of it, such as x / numpy.timedelta64(1, 's')",
    "U": "make numbers of it, such as the token ids of a text",
    "S": "make numbers of it, such as the token ids of a text",
    "O": "make one array of numbers of it, such as x.astype(numpy.float32), or numpy.stack(list(x)) of arrays",
    "V": "make one array of numbers of it; a tensor of torch.bfloat16 is taken as it is",
}
"""How to convert arrays that are not numeric, by numpy's kind of type."""


def as_input(name: str, modality: str, value: Any) -> Tensor:
    """One modality as a tensor on the CPU, examples first; float64 becomes float32.

    Raises:
        ShapeError: no array of examples, or rows of different lengths; names them.
        DataError: it is not numeric.
    """
    where = f"dataset {name!r}: {modality!r}"
    if isinstance(value, Mapping):
        parts = ", ".join(f"{part!r}: ..." for part in value)
        raise ShapeError(
            f"{where} is a mapping of {', '.join(map(repr, value))}; every tensor is a separate modality: "
            f"inputs={{{parts}}} and Network(module, reads={tuple(value)!r}), which passes them in that order, or "
            "`input_adapter=`, which passes them by name"
        )
    tensor = as_tensor(value, where)
    if tensor.ndim < 2:
        cure = "; one number for each example is values[:, None]" if tensor.ndim == 1 else ""
        raise ShapeError(
            f"{where} has shape {tuple(tensor.shape)}; wanted (examples, ...), at least two dimensions{cure}"
        )
    if len(tensor) and not tensor.numel():
        raise ShapeError(f"{where} has shape {tuple(tensor.shape)}: an example holds no number")
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def as_inputs(name: str, inputs: Mapping[str, Any]) -> dict[str, Rows]:
    """Every modality as a tensor on the CPU, or as the row source that it is; the errors are those of `as_input`."""
    return {
        modality: checked(value, name) if is_row_source(value) else as_input(name, modality, value)
        for modality, value in inputs.items()
    }


def as_tensor(value: Any, where: str) -> Tensor:
    """Numbers as a tensor on the CPU, without a copy if possible; `where` begins the text of an error.

    Raises:
        ShapeError: rows of different shapes; names them.
        DataError: it does not hold real numbers.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        _check_even(value, where)
        value = torch.stack(list(value))
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise DataError(f"{where} is a tensor of layout {value.layout} on {value.device}; wanted .to_dense().cpu()")
        tensor = value.detach().cpu()
        if tensor.is_complex():
            raise DataError(f"{where} is {_short(tensor.dtype)}; {CURES['c']}")
        return tensor
    array = as_array(value, where)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is {array.dtype}{_first_stranger(array)}; wanted numbers: {CURES[array.dtype.kind]}")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides) or any(stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # torch warns of read-only arrays; a data set is never written to.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def as_array(value: Any, where: str) -> NDArray[Any]:
    """Any array-like as a numpy array of any type; `where` begins the text of an error.

    Raises:
        ShapeError: rows of different shapes; names them.
        DataError: numpy cannot read it.
    """
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return np.asarray((plain.float() if plain.dtype == torch.bfloat16 else plain).numpy())
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{where} is a masked array; fill it in (.filled(...)), and mark absent rows with `present`")
    if isinstance(value, Iterable) and not hasattr(value, "__array__") and not hasattr(value, "__len__"):
        value = list(value)
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(value, Sequence):
            _check_even(value, where)
        raise DataError(f"{where} cannot be read as an array: {' '.join(str(error).split())}") from error


def as_mask(name: str, what: str, value: Any, rows: int) -> Bool[Tensor, " N"]:
    """A mask (N,) from booleans, or from 0 and 1, for each row.

    Raises:
        ShapeError: not one value for each row.
        DataError: other values, such as row numbers; says how to convert them to a mask.
    """
    where = f"dataset {name!r}: {what}"
    array = as_array(value, where)
    if array.dtype == object and array.ndim == 1 and all(isinstance(item, bool | np.bool_) for item in array):
        array = array.astype(bool)
    per_row = array.shape == (rows,)
    # These are not row numbers, which could name two rows at most.
    if array.dtype.kind in "iu" and per_row and not ((array != 0) & (array != 1)).any():
        array = array.astype(bool)
    if array.dtype.kind in "iu":
        raise DataError(
            f"{where} holds whole numbers ({array.dtype}); wanted true or false for each of the {rows} rows. Of row "
            f"numbers: mask = numpy.zeros({rows}, bool); mask[numbers] = True"
        )
    if array.dtype != bool:
        raise DataError(f"{where} is {array.dtype}{_first_stranger(array)}; wanted true or false for each row")
    if not per_row:
        raise ShapeError(f"{where} has shape {array.shape}; wanted ({rows},), true or false for each row")
    return torch.from_numpy(np.array(array))


def as_groups(name: str, kind: str, value: Any, rows: int) -> Int64[Tensor, " N"]:
    """The group number of each row (N,); names are numbered in alphabetical order.

    Raises:
        ShapeError: not one group for each row.
        DataError: neither whole numbers nor names.
    """
    where = f"dataset {name!r}: groups[{kind!r}]"
    array = as_array(value, where)
    if array.shape != (rows,):
        raise ShapeError(f"{where} has shape {array.shape}; wanted ({rows},), the group of each row")
    if array.dtype.kind in "US" or (array.dtype == object and all(isinstance(item, str) for item in array)):
        array = np.unique(array.astype(str), return_inverse=True)[1]
    return torch.from_numpy(_whole(array, f"{where}", "whole numbers or names"))


def as_rows(name: str, split: str, value: Any, rows: int) -> Int64[Tensor, " R"]:
    """The row numbers (R,) of a split, from row numbers or a mask (N,).

    Raises:
        ShapeError: not a list of rows.
        DataError: not whole numbers.
    """
    where = f"dataset {name!r}: split {split!r}"
    array = as_array(value, where)
    if array.ndim != 1:
        raise ShapeError(f"{where} has shape {array.shape}; wanted a list of row numbers")
    if array.dtype == bool:
        if len(array) != rows:
            raise ShapeError(f"{where} is a mask of {len(array)} rows, but there are {rows}")
        return torch.from_numpy(np.flatnonzero(array))
    if not len(array):
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(_whole(array, where, "row numbers"))


def as_domain(name: str, value: Iterable[Any]) -> tuple[str, ...]:
    """The domain name of each row.

    Raises:
        DataError: a single text, or values that are not names.
    """
    domains = (value,) if isinstance(value, str) else tuple(value)
    wrong = [row for row, domain in enumerate(domains) if not isinstance(domain, str)]
    if isinstance(value, str) or wrong:
        what = "is one text" if isinstance(value, str) else f"holds {domains[wrong[0]]!r} in row {wrong[0]}"
        raise DataError(f"dataset {name!r}: domain {what}; wanted the name of each row's domain")
    return tuple(str(domain) for domain in domains)


def rows_of(
    name: str, tensors: Mapping[str, Rows], single: Mapping[str, Any], several: Mapping[str, Mapping[str, Any] | None]
) -> int:
    """The number of rows that all arrays have. `labelled` is not among them: it may be a list of row numbers.

    Raises:
        ShapeError: there is no input, or two arrays have different numbers of rows.
    """
    if not tensors:
        raise ShapeError(f"dataset {name!r} has no inputs; it needs at least one modality")
    rowwise = dict(single)
    for kind, arrays in several.items():
        rowwise |= {f"{kind}[{key!r}]": values for key, values in (arrays or {}).items()}
    lengths = {modality: len(tensor) for modality, tensor in tensors.items()}
    for what, values in rowwise.items():
        if values is not None:
            lengths[what] = length_of(values, f"dataset {name!r}: {what}")
    check_lengths(name, lengths)
    return next(iter(lengths.values()))


def check_lengths(name: str, lengths: Mapping[str, int]) -> None:
    """Check that all arrays have the same number of rows.

    Raises:
        ShapeError: they do not; lists all arrays with their lengths.
    """
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{what} {count}" for what, count in lengths.items())
        raise ShapeError(
            f"dataset {name!r}: every array needs the same number of rows, one per example; found {listed}"
        )


def length_of(value: Any, where: str) -> int:
    """The number of rows of an array.

    Raises:
        ShapeError: it is not an array of rows.
    """
    shape = value.shape if hasattr(value, "shape") else None
    if shape is not None and len(shape) == 0:
        raise ShapeError(f"{where} is a single value; wanted one for each example")
    try:
        return len(value)
    except TypeError as error:
        raise ShapeError(f"{where} is of type {type(value).__name__}; wanted one value for each example") from error


def _whole(array: NDArray[Any], where: str, wanted: str) -> NDArray[np.int64]:
    if array.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)))
        if len(wrong):
            raise DataError(f"{where} holds {array[wrong[0]]} in row {int(wrong[0])}; wanted {wanted}")
    elif array.dtype.kind not in "iu":
        raise DataError(f"{where} is {array.dtype}{_first_stranger(array)}; wanted {wanted}")
    return array.astype(np.int64)


def _check_even(rows: Sequence[Any], where: str) -> None:
    shapes = [tuple(np.shape(row)) if _is_even(row) else None for row in rows]
    for row, shape in enumerate(shapes):
        if shape is None:
            raise ShapeError(f"{where}: row {row} is itself made of parts of different lengths; pad or cut them")
        if shape != shapes[0]:
            known = [one for one in shapes if one]
            if len(known) == len(shapes) and len({one[1:] for one in known}) == 1:
                name = where.rpartition(": ")[2]
                raise ShapeError(
                    f"{where} has {len(known)} rows of {told_lengths([one[0] for one in known])}: "
                    f"inputs={{{name}: Padded().rows(values)}}"
                )
            raise ShapeError(
                f"{where} has rows of different shapes: row 0 has {shapes[0]}, row {row} has {shape}; "
                "pad or cut them to one"
            )


def _is_even(row: Any) -> bool:
    try:
        np.shape(row)
    except ValueError:
        return False
    return True


def _first_stranger(array: NDArray[Any]) -> str:
    """The row and type of the first value that is not a number, as text."""
    if array.dtype != object or not array.size:
        return ""
    flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    for row, values in enumerate(flat):
        for item in values:
            if not isinstance(item, int | float | np.number) or isinstance(item, bool):
                return f" (row {row} holds a {type(item).__name__})"
    return " (of numbers)"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
