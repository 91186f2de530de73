"""Checks the cells and files of a table's rows; faults are collected, and name lines."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crossdistill.data.content import OnProgress
from crossdistill.data.file_facts import Facts, FileKind, facts_of
from crossdistill.data.input_column import (
    ColumnType,
    InputColumn,
    is_number,
    type_of_cell,
    type_of_column,
    unused_settings,
)
from crossdistill.data.table_file import Table
from crossdistill.errors import DataError
from crossdistill.runtime.escaping import visible

log = logging.getLogger("crossdistill")

OnBad = Literal["refuse", "skip"]
LISTED = 20
"""Rows left out that are listed with their reason; the rest are counted."""


class Faults:
    """Faults of one table or folder, reported together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[str] = []

    def __bool__(self) -> bool:
        """Whether there is a fault."""
        return bool(self._found)

    def add(self, fault: str) -> None:
        """Add a sentence."""
        self._found.append(fault.removeprefix(f"{self._path}: "))

    def check(self) -> None:
        """Raise an error with all faults so far.

        Raises:
            DataError: there are some.
        """
        if len(self._found) == 1:
            raise DataError(f"{self._path}: {self._found[0]}")
        if self._found:
            lines = "\n".join(f"  - {fault}" for fault in self._found)
            raise DataError(f"{self._path}: {len(self._found)} faults; nothing was trained:\n{lines}")


@dataclass
class Modality:
    """One input while its cells are read: its columns, type, and for files the path and facts of each row."""

    name: str
    settings: InputColumn
    columns: tuple[str, ...]
    kind: ColumnType
    paths: list[str | None] = field(default_factory=list)
    facts: list[Facts | None] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def of_files(self) -> bool:
        """Whether each row has a file of its own."""
        return self.kind in ("image", "sound", "array") and self.settings.file is None

    @property
    def file_kind(self) -> FileKind:
        """The kind of its files.

        Raises:
            ValueError: it is no input of files.
        """
        if self.kind == "text" or self.kind == "numbers":
            raise ValueError(f"{self.name!r} is {self.kind}, which are no files")
        return self.kind


@dataclass(frozen=True)
class Roles:
    """Columns that are no input; None: there is none."""

    targets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    domain: str | None = None
    id: str | None = None
    split: str | None = None


def modalities_of(table: Table, inputs: Mapping[str, InputColumn], faults: Faults) -> list[Modality]:
    """The inputs that the settings name, each with its type."""
    found = []
    for name, settings in inputs.items():
        where = f"data.inputs.{name}"
        if settings.file is not None:
            if (unused := unused_settings(settings, "array")) is not None:
                faults.add(f"{where}: {unused}")
            found.append(Modality(name, settings, (), "array"))
            continue
        columns = settings.columns or ((settings.column,) if settings.column else ())
        if not columns:
            faults.add(f"{where}: says no column; known: {', '.join(table.columns)}")
            continue
        try:
            cells = [table.column(column, where) for column in columns]
            kinds = [
                settings.type or type_of_column(one, f"column {column!r}", table.lines)
                for one, column in zip(cells, columns, strict=True)
            ]
        except DataError as error:
            faults.add(str(error))
            continue
        other = next((i for i, kind in enumerate(kinds) if kind != "numbers"), None)
        if len(columns) > 1 and other is not None:
            faults.add(f"{where}: several columns are numbers, and {columns[other]!r} holds {kinds[other]}")
            continue
        if (unused := unused_settings(settings, kinds[0])) is not None:
            faults.add(f"{where}: {unused}")
            continue
        found.append(Modality(name, settings, tuple(columns), kinds[0]))
    return found


def resolve(table: Table, folder: Path, modality: Modality, faults: Faults) -> None:
    """Set the path of each row's file; cells that name none that may be read are faults."""
    (column,) = modality.columns
    root = os.path.join(folder, "")
    outside, alien = [], []
    for row, cell in enumerate(table.columns[column]):
        if cell is None:
            modality.paths.append(None)
            continue
        text = str(cell)
        path = os.path.normpath(os.path.join(folder, text))
        if not path.startswith(root) or "\0" in text:
            outside.append(row)
        elif type_of_cell(text) != modality.kind:
            alien.append(row)
        modality.paths.append(path)
    if outside:
        first = str(table.columns[column][outside[0]])
        faults.add(
            f"column {column!r} names files outside {folder}, in {table.some(outside)}: {visible(first)}; "
            "--set data.files=FOLDER names the folder that holds all files"
        )
    if alien:
        first = str(table.columns[column][alien[0]])
        faults.add(
            f"column {column!r} names files that are no {modality.kind} by their suffix, in {table.some(alien)}: "
            f"{visible(first)}"
        )


def examine(modality: Modality, progress: OnProgress) -> None:
    """Read the facts of all files, and note the rows whose file cannot be read."""
    rows = [row for row, path in enumerate(modality.paths) if path is not None]
    # A file may belong to several rows.
    unique = list(dict.fromkeys(path for path in modality.paths if path is not None))
    read = facts_of(
        modality.file_kind, unique, lambda done, due: progress(f"checking files of {modality.name}", done, due)
    )
    if len(unique) == len(modality.paths):
        modality.facts = list(read)
    else:
        known = dict(zip(unique, read, strict=True))
        modality.facts = [None if path is None else known[path] for path in modality.paths]
    shape: tuple[int, ...] | None = None
    for row in rows:
        facts, path = modality.facts[row], modality.paths[row]
        assert facts is not None
        if facts.fault:
            modality.bad[row] = f"{path}: {facts.fault}"
        elif modality.kind == "array":
            shape = facts.shape if shape is None else shape
            if facts.shape != shape:
                modality.bad[row] = f"{path}: has shape {facts.shape}, the first array {shape}"


def check_numbers(table: Table, modality: Modality) -> None:
    """Note the rows with a cell that is no number, or of which only some are empty."""
    for row in range(len(table)):
        cells = [table.columns[column][row] for column in modality.columns]
        if all(cell is None for cell in cells):
            continue
        wrong = next((i for i, cell in enumerate(cells) if not is_number(cell)), None)
        if wrong is not None:
            held = "nothing" if cells[wrong] is None else visible(repr(cells[wrong]))
            modality.bad[row] = f"column {modality.columns[wrong]!r} holds {held}; wanted a number"


def duplicates(table: Table, modalities: Sequence[Modality], roles: Roles) -> dict[int, int]:
    """Rows with the same cells as an earlier row, in all inputs that are files or texts, target and split."""
    named = [column for one in modalities for column in one.columns]
    named += [*roles.targets, *([roles.split] if roles.split is not None else [])]
    first: dict[tuple[Any, ...], int] = {}
    found: dict[int, int] = {}
    of_files = [table.columns[one.columns[0]] for one in modalities if one.of_files]
    if not of_files or any(len(set(cells)) == len(cells) for cells in of_files):
        return found
    for row in range(len(table)):
        key = tuple(str(table.columns[column][row]) for column in named)
        if key in first:
            found[row] = first[key]
        else:
            first[key] = row
    return found


def leave_out(table: Table, modalities: Sequence[Modality], roles: Roles, on_bad: OnBad, faults: Faults) -> list[int]:
    """The rows that stay. Bad ones are faults, or left out, counted and listed."""
    cure = "mend them, or leave these rows out: --set data.on_bad=skip"
    reasons: dict[int, str] = {}
    for modality in modalities:
        for row, reason in modality.bad.items():
            reasons.setdefault(row, reason)
        if modality.bad and on_bad == "refuse":
            some = "; ".join(f"line {table.lines[row]}: {why}" for row, why in list(modality.bad.items())[:3])
            more = f"; and {len(modality.bad) - 3:,} more" if len(modality.bad) > 3 else ""
            faults.add(
                f"{modality.name}: {len(modality.bad):,} of {len(table):,} rows cannot be read: {some}{more}; {cure}"
            )
    twice = duplicates(table, modalities, roles)
    if twice and on_bad == "refuse":
        row, before = next(iter(twice.items()))
        faults.add(
            f"{len(twice):,} rows are there twice, first line {table.lines[row]}, as line {table.lines[before]}; {cure}"
        )
    for row, before in twice.items():
        reasons.setdefault(row, f"is there twice, as line {table.lines[before]}")
    without = [row for row in range(len(table)) if all(absent(table, one, row) for one in modalities)]
    if without and on_bad == "refuse":
        faults.add(f"{table.some(without)} have no input; {cure}")
    for row in without:
        reasons.setdefault(row, "has no input")
    if on_bad == "skip" and reasons:
        listed = "".join(
            f"\n  line {table.lines[row]}: {visible(why)}" for row, why in sorted(reasons.items())[:LISTED]
        )
        more = f"\n  and {len(reasons) - LISTED:,} more" if len(reasons) > LISTED else ""
        log.warning("%s: %d of %d rows are left out:%s%s", table.path, len(reasons), len(table), listed, more)
    return [row for row in range(len(table)) if row not in reasons]


def absent(table: Table, modality: Modality, row: int) -> bool:
    """Whether all cells of an input are empty in a row."""
    return bool(modality.columns) and all(table.columns[column][row] is None for column in modality.columns)


def filled(table: Table, column: str, what: str, faults: Faults) -> list[str]:
    """The cells of a column in which none may be empty, as texts."""
    cells = table.columns[column]
    empty = [row for row, cell in enumerate(cells) if cell is None]
    if empty:
        faults.add(f"{what}: column {column!r} is empty in {table.some(empty)}")
    return cells if all(type(cell) is str for cell in cells) else [str(cell) for cell in cells]


def check_ids(table: Table, column: str, faults: Faults) -> None:
    """Each row has an id of its own."""
    cells = filled(table, column, "data.id", faults)
    first: dict[str, int] = {}
    twice = [row for row, cell in enumerate(cells) if first.setdefault(cell, row) != row]
    if twice:
        faults.add(f"data.id: column {column!r} holds {cells[twice[0]]!r} twice, in {table.some(twice)}")
