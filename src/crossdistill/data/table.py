"""`table`: your own rows, named in a csv, tsv, jsonl or parquet file: files, texts and numbers."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.data.input_column import InputColumn, type_of_cell, type_of_column
from crossdistill.data.own_rows import OwnRowsConfig
from crossdistill.data.own_splits import split_called
from crossdistill.data.split import SPLITS
from crossdistill.data.table_cells import Faults, Roles
from crossdistill.data.table_file import Table, read_table
from crossdistill.data.table_patterns import without_patterns
from crossdistill.data.table_rows import RowsToLoad, dataset_of
from crossdistill.errors import DataError

TARGETS = ("label", "labels", "class", "target", "category", "y")
"""Names of a column that is taken as the target."""
SPLIT_COLUMNS = ("split", "subset", "partition", "fold")
NO_INPUTS = (*TARGETS, "cls", "id", "index", "idx", "row", "")
"""Names of columns of numbers that are no input unless `inputs` names them; a CSV index of pandas has none."""
SHOWN = 8
"""Columns that a note lists; the rest are counted."""
NAMES = {"image": "image", "sound": "sound", "array": "array", "text": "text", "numbers": "numbers"}


class TableConfig(OwnRowsConfig):
    """Your own rows, named in a csv, tsv, jsonl or parquet file: files, texts and numbers."""

    name: Literal["table"] = "table"
    files: Path | None = Field(default=None, description="folder of the files; null: that of the table")
    inputs: Mapping[str, InputColumn] = Field(
        default_factory=dict,
        description="modality -> its column, as in data.inputs.image=FILE_COLUMN; empty: guessed",
        json_schema_extra={"grows": True},
    )
    target: tuple[str, ...] = Field(
        default=(), description="column of the classes; empty: one called label, class, ..."
    )
    task: Literal["classes", "multi-label", "regression", "soft"] | None = Field(
        default=None, description="kind of the targets; null: guessed. Several columns: labels of 0 and 1, or numbers"
    )
    standardise: bool = Field(default=True, description="numbers to predict, by mean and deviation of training rows")
    unlabelled: bool = Field(default=False, description="read no targets")
    classes: tuple[str, ...] = Field(default=(), description="names of all classes in their order; empty: those found")
    split: str | None = Field(default=None, description="column that names each row's split")
    splits: Mapping[Literal["train", "validation", "test"], tuple[str, ...]] = Field(
        default_factory=dict, description="ids of each split (needs `id`)"
    )
    group: tuple[str, ...] = Field(
        default=(), description="columns of what rows share (a speaker): never in two splits"
    )
    domain: str | None = Field(default=None, description="column of each row's domain")
    id: str | None = Field(default=None, description="column of each row's id")
    delimiter: str | None = Field(default=None, min_length=1, max_length=1, description="between fields; null: guessed")
    encoding: str = Field(default="utf-8", description="of the table's text")

    @field_validator("group", "target", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """One name is one column."""
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("files")
    @classmethod
    def _from_here(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    def about(self) -> str:
        """What `path` is."""
        return "a csv, tsv, jsonl or parquet file"

    def build(self, progress: OnProgress) -> Dataset:
        """The rows of the table, of which files are decoded when a batch needs them.

        Raises:
            DataError: all faults of the table and its files.
            MissingExtraError: a package that reads its files is not installed.
        """
        path = self.source()
        table = read_table(path, self.encoding, self.delimiter)
        faults = Faults(path)
        folder = Path(os.path.normpath(self.files or path.parent))
        taken = {*self.target, self.split, *self.group, self.domain, self.id}
        if not self.target and not self.unlabelled:
            taken.add(_called(table, TARGETS, set()))
        table, given = without_patterns(table, self.inputs, folder, self.on_bad, faults, taken)
        roles, notes = self._roles(table, given, faults)
        inputs: Mapping[str, InputColumn] = given
        if not inputs and not faults:
            inputs, left_out = _guessed(table, roles, faults)
            notes.append(
                "data.inputs is not set: " + ", ".join(f"{name} = {_shown(one)}" for name, one in inputs.items())
            )
            if left_out:
                notes.append(f"no inputs, by their names ids, labels or folds: {_listed(left_out)}")
        faults.check()
        table = self.limited(table, roles.targets, roles.split)
        ids = (str(roles.id), self.splits) if self.splits else None
        return dataset_of(
            RowsToLoad(
                name=path.stem,
                table=table,
                folder=folder,
                inputs=inputs,
                roles=roles,
                split=functools.partial(self.drawn, split=roles.split, ids=ids),
                classes=self.classes,
                task=self.task,
                standardise=self.standardise,
                on_bad=self.on_bad,
                notes=notes,
            ),
            progress,
        )

    def _roles(self, table: Table, given: Mapping[str, InputColumn], faults: Faults) -> tuple[Roles, list[str]]:
        """The columns that are no input; those that were guessed are said."""
        notes = []
        targets, split = () if self.unlabelled else self.target, self.split
        inputs = {column for one in given.values() for column in (one.column, *one.columns)}
        if not targets and not self.unlabelled:
            found = _called(table, TARGETS, inputs)
            targets = (found,) if found else ()
            notes += [f"data.target is not set: column {found!r}"] if found else []
        if split is None and not self.splits and self.folds is None:
            split = _called(table, SPLIT_COLUMNS, inputs)
            if split and not all(map(split_called, table.columns[split])):
                split = None
            notes += [f"data.split is not set: column {split!r}"] if split else []
        named: dict[str, tuple[str | None, ...]] = {
            "target": targets,
            "split": (split,),
            "group": self.group,
            "domain": (self.domain,),
            "id": (self.id,),
        }
        named |= {f"inputs.{name}": (one.column, *one.columns) for name, one in given.items()}
        for setting, columns in named.items():
            for column in columns:
                if column is not None:
                    try:
                        table.column(column, f"data.{setting}")
                    except DataError as error:
                        faults.add(str(error))
        if self.splits and (self.id is None or set(self.splits) != set(SPLITS)):
            faults.add(f"data.splits holds lists of ids for {', '.join(SPLITS)}, and data.id names the column of ids")
        self._check_apart(named, faults)
        return Roles(targets, self.group, self.domain, self.id, split), notes

    def _check_apart(self, named: Mapping[str, tuple[str | None, ...]], faults: Faults) -> None:
        """No column of targets, splits, groups, domains or ids is an input as well: a network would read its target.

        The name of a file may be its row's id.
        """
        for name, settings in self.inputs.items():
            for column in dict.fromkeys(named[f"inputs.{name}"]):
                for role in ("target", "split", "group", "domain", "id"):
                    if (
                        column is not None
                        and column in named[role]
                        and not (role == "id" and column == settings.column)
                    ):
                        faults.add(
                            f"data.inputs.{name} and data.{role} both name column {column!r}; leave it out of one"
                        )


def _called(table: Table, names: Sequence[str], taken: set[str | None]) -> str | None:
    lower = {column.lower(): column for column in table.columns if column not in taken}
    return next((lower[name] for name in names if name in lower), None)


def _no_input(column: str, cells: Sequence[Any]) -> bool:
    """Whether a column of numbers holds ids, labels or folds by its name."""
    name = column.lower()
    if name == "fold":
        return all(float(cell).is_integer() for cell in cells if cell is not None)
    return name in NO_INPUTS or name.endswith("_id") or name.startswith("unnamed: 0")


def _guessed(table: Table, roles: Roles, faults: Faults) -> tuple[dict[str, InputColumn], list[str]]:
    """The inputs, and columns of numbers that are none by their names.

    Inputs are columns of files, each a modality; without any, all columns of numbers together, else the longest text.
    """
    taken = {*roles.targets, roles.split, roles.domain, roles.id, *roles.groups}
    kinds = {}
    for column, cells in table.columns.items():
        if column in taken or all(cell is None for cell in cells):
            continue
        # A column that holds a file at all is checked as one.
        files = [kind for cell in cells if (kind := type_of_cell(cell)) in ("image", "sound", "array", "pickled")]
        try:
            kinds[column] = type_of_column(cells, f"column {column!r}", table.lines)
        except DataError as error:
            if len(files) > len(cells) // 2:
                faults.add(str(error))
    found = {}
    for kind in ("image", "sound", "array"):
        columns = [column for column, other in kinds.items() if other == kind]
        for column in columns:
            found[NAMES[kind] if len(columns) == 1 else _name(column)] = InputColumn(column=column)
    left_out = [c for c, kind in kinds.items() if kind == "numbers" and _no_input(c, table.columns[c])]
    numbers = tuple(column for column, kind in kinds.items() if kind == "numbers" and column not in left_out)
    texts = [column for column, kind in kinds.items() if kind == "text"]
    of_files = bool(found)
    if not found and numbers:
        found["numbers"] = InputColumn(columns=numbers)
    elif not found and texts:
        longest = max(texts, key=lambda column: sum(len(str(cell)) for cell in table.columns[column] if cell))
        found["text"] = InputColumn(column=longest)
    if not found and not faults:
        by_name = f" ({_listed(left_out)}: by their names ids, labels or folds)" if left_out else ""
        faults.add(
            f"no column looks like an input{by_name}; name one, as in --set data.inputs.image=COLUMN; known: "
            f"{', '.join(table.columns)}"
        )
    return found, [] if of_files else left_out


def _name(column: str) -> str:
    """A column's name as that of a modality, which holds no dot, slash or `@`."""
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in column)


def _shown(one: InputColumn) -> str:
    return one.column or f"[{_listed(one.columns)}]"


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - SHOWN:,} more" if len(columns) > SHOWN else ""
    return ", ".join(column or repr(column) for column in columns[:SHOWN]) + more
