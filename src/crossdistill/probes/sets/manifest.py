"""Any labelled recordings by a table: path and target, with start, duration and split where there are any."""

from pathlib import Path
from typing import Any

from crossdistill.data.table_file import Table, read_table
from crossdistill.errors import DataError
from crossdistill.probes.clips import Clip, ProbeData, divided, split_by_hash

NAMES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}
TARGET = "target"


def classes(file: Path) -> ProbeData:
    """Classes of the column `target`. The column `split` divides the rows; without it, the hash of the path does.

    Raises:
        DataError: a column is missing, a cell of `path` or `target` is empty, or another word than a split's.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [(str(value),) for value in _filled(table, TARGET)], [()] * len(table))


def numbers(file: Path) -> ProbeData:
    """Numbers of the column `target`, for a regression.

    Raises:
        DataError: as of `classes`, or a target is no number.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [()] * len(table), [(_number(table, value, TARGET),) for value in _filled(table, TARGET)])


def texts(file: Path) -> ProbeData:
    """Texts of the column `target`, for the recognition of speech.

    Raises:
        DataError: as of `classes`.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [(str(value).upper(),) for value in _filled(table, TARGET)], [()] * len(table))


def _divided(table: Table, labels: list[tuple[str, ...]], values: list[tuple[float, ...]]) -> ProbeData:
    names = [str(path) for path in _filled(table, "path")]
    starts = [_number(table, one or 0, "start") for one in table.columns.get("start", [0] * len(table))]
    lengths = table.columns.get("duration", [None] * len(table))
    clips = [
        Clip(
            name if not start else f"{name}@{start:g}",
            table.path.parent / name,
            label,
            number,
            start,
            None if length is None else _number(table, length, "duration"),
        )
        for name, label, number, start, length in zip(names, labels, values, starts, lengths, strict=True)
    ]
    if "split" not in table.columns:
        return divided(clips, split_by_hash(names), table.path, "no column 'split': split by hash of the path")
    words = [NAMES.get(str(word).lower(), str(word).lower()) for word in _filled(table, "split")]
    wrong = sorted(set(words) - {"train", "validation", "test"})
    if wrong:
        raise DataError(f"{table.path}: column 'split': wanted train, validation or test, found {wrong[0]!r}")
    return divided(clips, words, table.path)


def _filled(table: Table, column: str) -> list[Any]:
    cells = table.column(column, str(table.path))
    empty = [row for row, cell in enumerate(cells) if cell is None]
    if empty:
        raise DataError(f"{table.path}: column {column!r} is empty in {table.some(empty)}")
    return cells


def _number(table: Table, value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{table.path}: column {column!r}: wanted a number, found {value!r}") from error
