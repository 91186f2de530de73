"""Any labelled recordings by a table: path and target, with start, duration and split where there are any."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossdistill.data.audio.manifest import unread
from crossdistill.data.own_splits import split_called
from crossdistill.data.table_file import Table, read_table
from crossdistill.errors import DataError, nearest
from crossdistill.probes.clips import SPLITS, Clip, ProbeData, divided, split_by_hash

TARGET = "target"
READ = ("path", TARGET, "start", "duration", "split")


def classes(file: Path) -> ProbeData:
    """Classes of the column `target`. The column `split` divides the rows; without it, the hash of the path does.

    Raises:
        DataError: a column is missing, a cell of `path` or `target` is empty, another word than a split's, a start or a
            duration that is no part of a recording, or two lines with one part. Names the line.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [(str(value),) for value in _filled(table, TARGET)], [()] * len(table))


def numbers(file: Path) -> ProbeData:
    """Numbers of the column `target`, for a regression.

    Raises:
        DataError: as of `classes`, or a target is no finite number.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [()] * len(table), [(value,) for value in _numbers(table, TARGET, "a finite number")])


def texts(file: Path) -> ProbeData:
    """Texts of the column `target`, for the recognition of speech.

    Raises:
        DataError: as of `classes`.
    """
    table = read_table(file, "utf-8", None)
    return _divided(table, [(str(value).upper(),) for value in _filled(table, TARGET)], [()] * len(table))


def _divided(table: Table, labels: list[tuple[str, ...]], values: list[tuple[float, ...]]) -> ProbeData:
    others, misspelled = unread(list(table.columns), READ)
    if misspelled:
        raise DataError(f"{table.path}: {'; '.join(misspelled)}")
    left = f"columns not read: {', '.join(others)}" if others else ""
    paths = [str(path) for path in _filled(table, "path")]
    starts: list[float | None] = [None] * len(table)
    seconds: list[float | None] = [None] * len(table)
    if "start" in table.columns:
        starts = _numbers(table, "start", "0 s or more", lambda start: start >= 0)
    if "duration" in table.columns:
        seconds = _numbers(table, "duration", "more than 0 s", lambda length: length > 0)
    names = [_name(*part) for part in zip(paths, starts, seconds, strict=True)]
    _refuse_repeated(table, names)
    clips = [
        Clip(name, table.path.parent / path, label, number, start or 0.0, length)
        for name, path, label, number, start, length in zip(names, paths, labels, values, starts, seconds, strict=True)
    ]
    if "split" not in table.columns:
        how = "no column 'split': split by hash of the path"
        return divided(clips, split_by_hash(paths), table.path, f"{how}; {left}" if left else how)
    words = _filled(table, "split")
    splits = [split_called(word) for word in words]
    if None in splits:
        row = splits.index(None)
        raise DataError(
            f"{table.path}: column 'split' holds {words[row]!r} in {table.some([row])}, which names no split; "
            f"{nearest(str(words[row]), SPLITS)}"
        )
    words_of = ", ".join(sorted({str(word) for word in words}))
    return divided(clips, [str(split) for split in splits], table.path, left, rule=f"column 'split' holds {words_of}")


def _name(path: str, start: float | None, seconds: float | None) -> str:
    """The id of a part: all digits of its start and its length, so that two parts never have one id."""
    return path if not start and seconds is None else f"{path}@{start or 0.0!r}" + (f"+{seconds!r}" if seconds else "")


def _refuse_repeated(table: Table, names: list[str]) -> None:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    name, same = max(rows.items(), key=lambda item: len(item[1]))
    if len(same) > 1:
        raise DataError(f"{table.path}: {table.some(same)} are one part of one recording, {name}; keep one of them")


def _filled(table: Table, column: str) -> list[Any]:
    cells = table.column(column, str(table.path))
    empty = [row for row, cell in enumerate(cells) if cell is None]
    if empty:
        raise DataError(f"{table.path}: column {column!r} is empty in {table.some(empty)}")
    return cells


def _numbers(table: Table, column: str, wanted: str, fits: Callable[[float], bool] = math.isfinite) -> list[Any]:
    """The finite numbers of a column; cells of `start` and `duration` may be empty (None)."""
    cells = _filled(table, column) if column == TARGET else table.columns[column]
    numbers: list[float | None] = []
    for row, cell in enumerate(cells):
        try:
            number = None if cell is None else float(cell)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not (math.isfinite(number) and fits(number)):
            raise DataError(f"{table.path}: column {column!r} holds {cell!r} in {table.some([row])}; wanted {wanted}")
        numbers.append(number)
    return numbers
