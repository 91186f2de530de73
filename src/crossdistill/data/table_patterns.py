"""Patterns of a table's inputs: names of columns such as "pixel_*", and names of files such as "images/{id}_*.png"."""

import bisect
import fnmatch
import functools
import glob
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crossdistill.data.input_column import InputColumn
from crossdistill.data.table_cells import Faults, OnBad
from crossdistill.data.table_file import Table
from crossdistill.errors import DataError
from crossdistill.runtime.escaping import visible

log = logging.getLogger("crossdistill")

FIELD = re.compile(r"\{([^{}]+)\}")
"""A column's name in a pattern of files."""
WILDCARDS = re.compile(r"[*?]")
SHOWN = 3
"""Files that a message lists."""


def without_patterns(
    table: Table,
    inputs: Mapping[str, InputColumn],
    folder: Path,
    on_bad: OnBad,
    faults: Faults,
    taken: Collection[str | None] = (),
) -> tuple[Table, dict[str, InputColumn]]:
    """The inputs with columns in place of patterns, and the table with a column for each pattern of files.

    A pattern of files names one file a row. A row lacks the input where a cell of the pattern is empty, and, with
    `on_bad` "skip", where no file matches. A pattern of columns matches none of those `taken` as targets, ids, ....
    """
    found = {}
    for name, one in inputs.items():
        try:
            if one.glob is not None:
                pattern = FilePattern(one.glob, f"data.inputs.{name}", table)
                cells = pattern.cells(folder, on_bad, faults)
                table = replace(table, columns={**table.columns, one.glob: cells})
                found[name] = one.model_copy(update={"glob": None, "column": one.glob})
            else:
                found[name] = _with_columns([column for column in table.columns if column not in taken], one)
        except DataError as error:
            faults.add(str(error))
            found[name] = one
    return table, found


def _with_columns(columns: Sequence[str], one: InputColumn) -> InputColumn:
    """The same input with the names of the columns that its patterns match; other names stay."""
    names = one.columns or ((one.column,) if one.column is not None else ())
    listed: list[str] = []
    for name in names:
        matched = []
        if name not in columns and WILDCARDS.search(name):
            matched = [column for column in columns if fnmatch.fnmatchcase(column, name)]
        listed += matched or [name]
    if tuple(listed) == names:
        return one
    return one.model_copy(update={"column": None, "columns": tuple(dict.fromkeys(listed))})


class FilePattern:
    """A pattern of files with cells of each row, such as "images/{id}_*.png".

    Raises:
        DataError: it names a column that is not there.
    """

    def __init__(self, pattern: str, where: str, table: Table) -> None:
        self._pattern, self._where, self._table = pattern, where, table
        self._columns = {name: table.column(name, where) for name in FIELD.findall(pattern)}

    def cells(self, folder: Path, on_bad: OnBad, faults: Faults) -> list[str | None]:
        """The file of each row, relative to the folder; none or several that match are faults."""
        files = _Files(folder)
        matched = [[] if text is None else files.matching(text) for text in map(self._of_row, range(len(self._table)))]
        missing = [row for row, names in enumerate(matched) if not names and self._of_row(row) is not None]
        several = [row for row, names in enumerate(matched) if len(names) > 1]
        if several:
            names = visible(", ".join(matched[several[0]][:SHOWN]))
            faults.add(f"{self._where}: {self._said(several)} matches several files: {names}; wanted one")
        if missing and on_bad == "refuse":
            faults.add(
                f"{self._where}: {self._said(missing)} matches no file in {folder}; mend it, or set data.on_bad=skip, "
                "and such rows lack this input"
            )
        elif missing:
            log.warning("%s: %s matches no file: these rows lack this input", self._where, self._said(missing))
        return [names[0] if names else None for names in matched]

    def _of_row(self, row: int) -> str | None:
        """The pattern with the cells of a row, which are names as they are, without wildcards of their own."""
        cells = {name: column[row] for name, column in self._columns.items()}
        if any(cell is None for cell in cells.values()):
            return None
        return FIELD.sub(lambda field: glob.escape(str(cells[field[1]])), self._pattern)

    def _said(self, rows: Sequence[int]) -> str:
        return f"{self._pattern!r} in {self._table.some(list(rows))}"


class _Files:
    """The files below a folder, of which each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.join(folder, "")
        self._listed = functools.cache(_sorted_names)

    def matching(self, pattern: str) -> list[str]:
        """Paths, relative to the folder, that match; a pattern that leads outside matches itself alone."""
        path = os.path.normpath(os.path.join(self._root, pattern))
        place, name = os.path.split(path)
        if not path.startswith(self._root):
            return [pattern]
        if glob.has_magic(place):
            return [os.path.relpath(found, self._root) for found in sorted(glob.glob(path))]
        names = self._listed(place)
        if not glob.has_magic(name):
            return [os.path.relpath(path, self._root)] if name in names[bisect.bisect_left(names, name) :][:1] else []
        start = name[: min(place for place in map(name.find, "*?[") if place >= 0)]
        fits = re.compile(fnmatch.translate(name)).match
        found = []
        for candidate in names[bisect.bisect_left(names, start) :]:
            if not candidate.startswith(start):
                break
            if fits(candidate):
                found.append(os.path.relpath(os.path.join(place, candidate), self._root))
        return found


def _sorted_names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
