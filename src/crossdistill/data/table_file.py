"""Reads a table (csv, tsv, jsonl; parquet by pyarrow) as columns; a fault names the line."""

import csv
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.errors import DataError, MissingExtraError, nearest
from crossdistill.runtime.files import file_fault

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
TABLES = (*DELIMITERS, ".jsonl", ".ndjson", ".parquet")
OTHERS = {
    ".json": "write one object a line, as .jsonl",
    ".xlsx": "save the sheet as .csv",
    ".xls": "save the sheet as .csv",
    ".ods": "save the sheet as .csv",
    ".pkl": "a pickle can run code; write the table as .csv or .parquet",
    ".pickle": "a pickle can run code; write the table as .csv or .parquet",
}
SHOWN = 3
"""Lines that a fault lists; the rest are counted."""
SHARED = 256
"""Values of a column of which all rows hold one object: a domain or a class of millions of rows is one text."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length; an empty cell is None.

    `lines` holds the line of each row in the file, `numbers` its place among the `whole` rows of the file, from 0.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    numbers: Sequence[int] = ()
    whole: int = -1

    def __post_init__(self) -> None:
        """A table that is no part of another holds all rows."""
        if self.whole < 0:
            object.__setattr__(self, "numbers", range(len(self.lines)))
            object.__setattr__(self, "whole", len(self.lines))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def column(self, name: str, setting: str) -> list[Any]:
        """The cells of a column.

        Raises:
            DataError: there is none of that name; names the nearest, and the setting that named it.
        """
        if name not in self.columns:
            raise DataError(f"{setting}: there is no column {name!r}; {nearest(name, self.columns)}")
        return self.columns[name]

    def rows(self, kept: Sequence[int]) -> "Table":
        """These rows alone, in ascending order."""
        if len(kept) == len(self):
            return self
        columns = {name: [cells[row] for row in kept] for name, cells in self.columns.items()}
        numbers = [self.numbers[row] for row in kept]
        return Table(self.path, columns, [self.lines[row] for row in kept], numbers, self.whole)

    def some(self, rows: Sequence[int]) -> str:
        """Rows for a fault, as "lines 3, 7, 9 and 4 more"."""
        more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
        noun = "line" if len(rows) == 1 else "lines"
        return f"{noun} {', '.join(str(self.lines[row]) for row in rows[:SHOWN])}{more}"


def read_table(path: Path, encoding: str, delimiter: str | None) -> Table:
    """The table in a file, by its suffix.

    Raises:
        DataError: no file, another format, not text of this encoding, empty, or a line with other fields than the
            first; names the line.
        MissingExtraError: pyarrow is not installed, for parquet.
    """
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        cure = OTHERS.get(suffix, "rename it if it is one of them")
        raise DataError(f"{path}: a table is a file {', '.join(TABLES)}, found {suffix or 'no suffix'!r}; {cure}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; wanted a line of column names, and a line for each example")
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix in DELIMITERS:
        table = _separated(path, _text(path, encoding), delimiter or DELIMITERS[suffix], chosen=delimiter is not None)
    else:
        table = _json_lines(path, _text(path, encoding))
    if not len(table):
        raise DataError(f"{path}: holds the columns {', '.join(map(repr, table.columns))} and no row")
    return table


def _text(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    if encoding == "utf-8" and content[:2] in marks:
        raise DataError(f"{path}: is UTF-16, not UTF-8; --set data.encoding=utf-16 reads it")
    try:
        # A byte order mark is no part of the first column's name.
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: byte 0x{content[error.start]:02x} in line {line} is no {encoding}; save the table as UTF-8, "
            "or say how it is encoded, as in --set data.encoding=latin-1"
        ) from error
    except LookupError as error:
        raise DataError(f"{path}: data.encoding: {error}; known are utf-8, utf-16, latin-1, cp1252, ...") from error


def _separated(path: Path, text: str, delimiter: str, *, chosen: bool) -> Table:
    first = text.partition("\n")[0]
    if not chosen and delimiter not in first:
        delimiter = max([delimiter, ";", "\t", "|"], key=first.count) if any(c in first for c in ";\t|") else delimiter
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    names: list[str] = []
    columns: list[_Column] = []
    lines = array("q")
    wrong: list[str] = []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not names:
                names = [field.strip() for field in fields]
                columns = [_Column() for _ in names]
                continue
            if len(fields) != len(names):
                wrong.append(f"line {reader.line_num} has {len(fields)} fields")
                continue
            for column, field in zip(columns, fields, strict=True):
                column.add(field.strip() or None)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; is a quote left open?") from error
    if not names:
        raise DataError(f"{path}: is empty; wanted a line of column names, and a line for each example")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns are called {', '.join(map(repr, twice))}; give each a name of its own")
    if wrong:
        more = f" and {len(wrong) - SHOWN:,} more lines" if len(wrong) > SHOWN else ""
        raise DataError(
            f"{path}: {'; '.join(wrong[:SHOWN])}{more}, for {len(names)} column names; put quotes around a field that "
            f"holds {delimiter!r}"
        )
    cells = {name: column.cells for name, column in zip(names, columns, strict=True)}
    return Table(path, cells, _plain(lines))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text, each with its end, one at a time."""
    mark = "\n" if "\n" in text else "\r"
    start = 0
    while start < len(text):
        end = text.find(mark, start) + 1 or len(text)
        yield text[start:end]
        start = end


def _plain(lines: "array[int]") -> Sequence[int]:
    """The numbers of lines; without gaps they are a range."""
    first, last = (lines[0], lines[-1]) if len(lines) else (1, 0)
    return range(first, last + 1) if last - first + 1 == len(lines) else lines.tolist()


class _Column:
    """Cells of one column, in which the first few values are each one object."""

    def __init__(self) -> None:
        self.cells: list[Any] = []
        self._shared: dict[str, str] = {}

    def add(self, cell: Any) -> None:
        if isinstance(cell, str):
            shared = self._shared
            cell = shared.setdefault(cell, cell) if len(shared) < SHARED else shared.get(cell, cell)
        self.cells.append(cell)


def _json_lines(path: Path, text: str) -> Table:
    columns: dict[str, _Column] = {}
    lines = array("q")
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is no JSON: {error}; wanted one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} holds a {type(row).__name__}; wanted one object a line")
        for name in (name for name in row if name not in columns):
            columns[name] = _Column()
            columns[name].cells = [None] * len(lines)
        for name, column in columns.items():
            column.add(_cell(row.get(name)))
        lines.append(number)
    return Table(path, {name: column.cells for name, column in columns.items()}, _plain(lines))


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet", "pyarrow", "parquet") from error
    try:
        columns = parquet.read_table(path).to_pydict()
    except Exception as error:  # pyarrow raises errors of many kinds
        raise DataError(f"{path}: not readable as parquet: {' '.join(str(error).split())[:200]}") from error
    count = len(next(iter(columns.values()), []))
    cells = {str(name): [_cell(value) for value in values] for name, values in columns.items()}
    return Table(path, cells, range(1, count + 1))


def _cell(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value
