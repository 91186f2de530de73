"""Row sources: inputs that are read or decoded when a batch needs them, beside tensors in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.errors import CrossdistillError, DataError, SettingError, ShapeError


@runtime_checkable
class RowSource(Protocol):
    """The rows of one modality, like a tensor (N, ...) that is read when a batch needs it.

    `fetch` is called with rows in any order, also in worker processes. With `deterministic`, a row has the same values
    whenever it is read; without, its outputs are never stored, and a resumed run differs. Rows of variable length come
    as a mapping, such as {"values": (B, longest, ...), "lengths": (B,)}, which reaches a network as keyword arguments.

    A source may have further methods: `name_of(row) -> str`, such as the row's file, for errors; `row_key(row) ->
    bytes`, equal for rows with equal values, which saves decoding them; `check_unchanged()`, which raises a DataError
    if the files have changed; `quick(rows) -> bool`, whether these rows need no worker now; and the attributes
    `lengths` (N,), where batches are padded to their longest row, else None, and `in_memory`, true where reading rows
    is so cheap that no worker is worth it.
    """

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *example); of rows of variable length, the longest example."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        ...

    @property
    def spec(self) -> InputSpec:
        """Shape, format and preparation of one example."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the content and of its preparation: equal only for equal rows."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether a row has the same values whenever it is read."""
        ...

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The values of some rows, as a tensor (B, *example) or a mapping of tensors with B rows each."""
        ...


Rows = Tensor | RowSource
"""The rows of a modality: in memory or memory-mapped, or read when a batch needs them."""

PARTS = ("shape", "dtype", "spec", "fingerprint", "deterministic", "fetch")


def is_row_source(value: Any) -> TypeGuard[RowSource]:
    """Whether a value is meant as a row source; `checked` says whether it is complete."""
    return not isinstance(value, Tensor | type) and callable(getattr(value, "fetch", None))


def checked(source: Any, where: str) -> RowSource:
    """A row source that is complete and consistent; `where` begins the text of an error.

    Raises:
        DataError: a part is missing or has another type.
        ShapeError: its length, its shape and its specification disagree.
    """
    kind = type(source).__name__
    missing = [part for part in (*PARTS, "__len__") if not hasattr(source, part)]
    if missing:
        raise DataError(f"{where}: the row source {kind} lacks {', '.join(missing)}; see crossdistill.data.row_source")
    if not (isinstance(source.fingerprint, str) and source.fingerprint):
        raise DataError(f"{where}: the fingerprint of {kind} is {source.fingerprint!r}; wanted a hash of its content")
    if not (isinstance(source.dtype, torch.dtype) and isinstance(source.spec, InputSpec)):
        raise DataError(
            f"{where}: {kind} has the type {source.dtype!r} and the specification {source.spec!r}; wanted a "
            "torch.dtype and an InputSpec"
        )
    shape = tuple(source.shape)
    if shape != (len(source), *source.spec.shape):
        raise ShapeError(
            f"{where}: {kind} has {len(source)} rows, shape {shape}, and examples of {tuple(source.spec.shape)}; "
            "wanted shape = (rows, *spec.shape)"
        )
    complete: RowSource = source
    return complete


def read_rows(values: Rows, rows: Int64[Tensor, " B"], where: str, present: Bool[Tensor, " N"] | None = None) -> Input:
    """The values of some rows; of a row source, rows that are not `present` are not read and hold zeros.

    Raises:
        DataError: a row cannot be read, or holds NaN or Inf; names it.
        ShapeError: the source returns something else than it declares.
    """
    if not isinstance(values, Tensor):
        return _read_present(values, rows, where, present)
    if values.dtype == torch.uint16:
        # PyTorch before 2.7 does not index uint16: index the same bits as int16.
        return values.view(torch.int16)[rows].view(torch.uint16)
    return values[rows]


def _read_present(source: RowSource, rows: Tensor, where: str, present: Tensor | None) -> Input:
    there = None if present is None else present[rows]
    if there is None or bool(there.all()):
        return read_source(source, rows, where)
    assert present is not None
    if bool(there.any()):
        read, places = read_source(source, rows[there], where), there.nonzero().flatten()
    else:
        # Any row that can be read gives the form of the others.
        read, places = read_source(source, present.nonzero()[:1, 0], where), torch.zeros(0, dtype=torch.int64)

    def spread(value: Tensor) -> Tensor:
        return value.new_zeros(len(rows), *value.shape[1:]).index_copy(0, places, value[: len(places)])

    return spread(read) if isinstance(read, Tensor) else {name: spread(value) for name, value in read.items()}


def read_source(source: RowSource, rows: Int64[Tensor, " B"], where: str) -> Input:
    """`source.fetch(rows)`, checked; after an error, each row is read alone to name the one at fault.

    Raises:
        DataError: a row cannot be read, or holds NaN or Inf; names it.
        ShapeError: the source returns something else than it declares.
    """
    if not len(rows):
        # Some sources cannot stack nothing.
        read = read_source(source, torch.zeros(1, dtype=torch.int64), where)
        return read[:0] if isinstance(read, Tensor) else {name: value[:0] for name, value in read.items()}
    try:
        read = source.fetch(rows)
    except Exception as error:  # a user's code may raise anything
        raise _named(source, rows, where, error) from error
    _check_form(source, read, len(rows), where)
    for values in [read] if isinstance(read, Tensor) else read.values():
        # A sum shows NaN and Inf, faster than a look at each value; an overflow of it alone is no fault.
        if values.is_floating_point() and not bool(values.sum().isfinite()):
            bad = rows[~values.isfinite().flatten(1).all(1)]
            if not len(bad):
                continue
            raise DataError(
                f"{where} holds NaN or Inf in {_some(source, bad.tolist())}; mend or drop the row, or mark it absent "
                "with `present`"
            )
    return read


def named_row(source: Rows, row: int) -> str:
    """A row for an error, with its file if the source knows it: "row 3 (cat/003.jpg)"."""
    name_of = getattr(source, "name_of", None)
    return f"row {row} ({name_of(row)})" if callable(name_of) else f"row {row}"


def read_one(source: Rows, row: int, where: str) -> bytes:
    """Bytes that are equal for rows with equal values: of the source's `row_key`, or else of the values."""
    key = getattr(source, "row_key", None)
    if callable(key):
        return bytes(key(row))
    read = read_rows(source, torch.tensor([row]), where)
    parts = [read] if isinstance(read, Tensor) else [read[name] for name in sorted(read)]
    return b"".join(part[0].contiguous().numpy().tobytes() for part in parts)


def sources_in(inputs: Mapping[str, Rows]) -> dict[str, RowSource]:
    """The modalities that are read when a batch needs them."""
    return {name: rows for name, rows in inputs.items() if not isinstance(rows, Tensor)}


def read_by_workers(inputs: Mapping[str, Rows]) -> dict[str, RowSource]:
    """The modalities whose rows take time to read."""
    sources = sources_in(inputs).items()
    return {name: source for name, source in sources if not getattr(source, "in_memory", False)}


def tensors_in_memory(inputs: Mapping[str, Rows], who: str) -> dict[str, Tensor]:
    """The inputs, all of which have to be tensors.

    Raises:
        DataError: one of them is a row source; `who` begins the text.
    """
    found = {name: rows for name, rows in inputs.items() if isinstance(rows, Tensor)}
    if len(found) < len(inputs):
        others = ", ".join(repr(name) for name in inputs if name not in found)
        raise DataError(f"{who} needs tensors in memory, and {others} is read row by row from {_kinds(inputs)}")
    return found


def bytes_in_memory(rows: Rows) -> int:
    """Bytes of a tensor, memory-mapped or not; 0 of a source, whose rows are read when a batch needs them."""
    return rows.numel() * rows.element_size() if isinstance(rows, Tensor) else 0


def row_lengths(inputs: Mapping[str, Rows], who: str) -> Float[Tensor, " N"]:
    """The length of each row, of several sources the sum of their lengths / their means.

    Raises:
        SettingError: no source has lengths; `who` begins the text.
    """
    known = [lengths for source in inputs.values() if isinstance(lengths := getattr(source, "lengths", None), Tensor)]
    if not known:
        raise SettingError(
            f"{who}: length_buckets is for rows of different lengths, and no input of {', '.join(inputs)} has lengths; "
            "leave it at 0"
        )
    total = torch.zeros(len(known[0]))
    for lengths in known:
        total += lengths / lengths.double().mean().clamp(min=1)
    return total


def costliest(inputs: Mapping[str, Rows], rows: Int64[Tensor, " R"], number: int) -> Int64[Tensor, " B"]:
    """Places of the rows whose pass takes the most memory: the longest, or the first where all are of one length."""
    if not varying(inputs):
        return torch.arange(min(number, len(rows)))
    return row_lengths(inputs, "data")[rows].argsort(descending=True, stable=True)[:number]


def varying(inputs: Mapping[str, Rows]) -> list[str]:
    """The modalities whose rows have different lengths."""
    return [name for name, source in inputs.items() if isinstance(getattr(source, "lengths", None), Tensor)]


@contextmanager
def unread(where: str) -> Iterator[None]:
    """Turn any error of a user's code into a DataError that begins with `where`."""
    try:
        yield
    except CrossdistillError:
        raise
    except Exception as error:
        raise DataError(f"{where}: {said(error)}") from error


def said(error: BaseException) -> str:
    """An exception in one line; what to do when memory ran out."""
    text = " ".join(str(error).split())[:400]
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{line}; lower data.workers or the batch size" if isinstance(error, MemoryError) else line


def _named(source: RowSource, rows: Tensor, where: str, error: Exception) -> CrossdistillError:
    """The error for rows that cannot be read, with the first row that fails alone."""
    if isinstance(error, CrossdistillError):
        own_words = where in str(error) or type(error) not in (DataError, ShapeError)
        return error if own_words else type(error)(f"{where}: {error}")
    for row in rows.tolist() if len(rows) > 1 and not isinstance(error, MemoryError) else []:
        try:
            source.fetch(torch.tensor([row]))
        except CrossdistillError as own:
            return _named(source, torch.tensor([row]), where, own)
        except Exception as own:
            return DataError(f"{where}: {named_row(source, row)} cannot be read: {said(own)}")
    shown = _some(source, rows.tolist())
    return DataError(f"{where}: {shown} cannot be read: {said(error)}")


def _check_form(source: RowSource, read: Any, rows: int, where: str) -> None:
    kind = type(source).__name__
    if isinstance(read, Tensor):
        wanted = (rows, *tuple(source.shape)[1:])
        if tuple(read.shape) != wanted or read.dtype != source.dtype:
            raise ShapeError(
                f"{where}: {kind} returned {_form(read)} for {rows} rows; it declares "
                f"{str(source.dtype).removeprefix('torch.')} {wanted}"
            )
    elif not (isinstance(read, Mapping) and read and all(isinstance(part, Tensor) for part in read.values())):
        raise ShapeError(
            f"{where}: {kind} returned a {type(read).__name__}; wanted a tensor or a mapping of tensors, rows first"
        )
    else:
        for name, part in read.items():
            if part.ndim < 1 or len(part) != rows:
                raise ShapeError(f"{where}: {kind} returned {name!r} as {_form(part)} for {rows} rows")


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _some(source: Rows, rows: Sequence[int]) -> str:
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return ", ".join(named_row(source, row) for row in rows[:3]) + more


def _kinds(inputs: Mapping[str, Rows]) -> str:
    return ", ".join(sorted({type(rows).__name__ for rows in sources_in(inputs).values()}))
