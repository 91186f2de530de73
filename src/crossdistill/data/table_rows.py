"""Makes a data set of a table's rows, of which every cell and file was checked."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.batch import Task
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.data.file_source import Files, FileSource, TextSource, mapped_array
from crossdistill.data.input_column import InputColumn, measured, rendering_for, unmeasured
from crossdistill.data.rendering import ArrayRendering, TextRendering
from crossdistill.data.table_cells import (
    Faults,
    Modality,
    OnBad,
    Roles,
    absent,
    check_ids,
    check_numbers,
    examine,
    filled,
    leave_out,
    modalities_of,
    resolve,
)
from crossdistill.data.table_file import Table
from crossdistill.data.table_targets import targets_of, task_of
from crossdistill.data.targets import read_targets, strata
from crossdistill.errors import CrossdistillError, DataError, ShapeError

log = logging.getLogger("crossdistill")

Splitter = Callable[[Tensor, str, Mapping[str, Tensor], Table], tuple[dict[str, Tensor], str]]
"""From strata, what they stand for, groups and the table to the splits and a sentence about them."""


@dataclass(frozen=True)
class RowsToLoad:
    """What `dataset_of` makes a data set from: a table, the folder of its files, and the settings."""

    name: str
    table: Table
    folder: Path
    inputs: Mapping[str, InputColumn]
    roles: Roles
    split: Splitter
    classes: Sequence[str] = ()
    task: Task | None = None
    standardise: bool = True
    on_bad: OnBad = "refuse"
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class _Checked:
    """Rows that stay, with what was read of them."""

    table: Table
    modalities: Sequence[Modality]
    targets: Any
    classes: tuple[str, ...]
    task: Task | None
    groups: Mapping[str, Tensor]
    domain: list[str] | None


def dataset_of(wanted: RowsToLoad, progress: OnProgress) -> Dataset:
    """The data set of a table's rows.

    Raises:
        DataError: all faults of the table, its cells and files.
        MissingExtraError: a package that reads its files is not installed.
    """
    rows = _checked(wanted, progress)
    table = rows.table
    try:
        targets, _, task = read_targets(wanted.name, rows.targets, len(table), rows.classes or None, rows.task)
        splits, how = wanted.split(*strata(targets, task), rows.groups, table)
        train = splits["train"].tolist()
        made = {one.name: _input(rows, wanted.folder, one, train) for one in rows.modalities}
    except CrossdistillError as error:
        raise DataError(f"{table.path}: {error}") from error
    dataset = Dataset.from_arrays(
        wanted.name,
        {modality: one.values for modality, one in made.items()},
        rows.targets,
        splits=splits,
        classes=rows.classes or None,
        input_specs={modality: one.spec for modality, one in made.items() if one.spec is not None},
        present={modality: one.present for modality, one in made.items() if one.present is not None},
        domain=rows.domain,
        groups=rows.groups,
        task=rows.task,
        standardise=wanted.standardise,
        about=f"{len(table):,} rows of {table.path.name}.",
        progress=progress,
    )
    for one in made.values():
        for remark in copies(one.values, dataset, splits) if isinstance(one.values, FileSource | TextSource) else ():
            log.warning("dataset %r: %s", wanted.name, remark)
    notes = list(wanted.notes)
    if rows.task is not None and rows.task != wanted.task and rows.task != "classes":
        notes.append(f"data.task is not set: {rows.task}")
    said = [*notes, *(gaps(rows.classes) if rows.task == "classes" else []), *(one.said for one in made.values()), how]
    return replace(dataset, how_split="; ".join(said))


def copies(source: FileSource | TextSource, dataset: Dataset, splits: Mapping[str, Tensor]) -> list[str]:
    """Sentences about files or texts of equal content that are in two splits or have two classes."""
    content = source.contents()
    noun = "files" if isinstance(source, FileSource) else "texts"
    subject = "files, or copies of equal content," if noun == "files" else "texts that are in several rows"
    place = torch.full((len(source),), -1)
    for number, rows in enumerate(splits.values()):
        place[rows] = number
    found = []
    for what, values in (
        (f"are in two splits, so the test is not of new {noun}", place),
        ("have two classes", dataset.targets),
    ):
        if values.ndim > 1:
            continue
        known = np.flatnonzero((values.numpy() >= 0) & (content >= 0))
        lowest, highest = np.full(len(source), len(source)), np.full(len(source), -1)
        np.minimum.at(lowest, content[known], values.numpy()[known])
        np.maximum.at(highest, content[known], values.numpy()[known])
        wrong = np.flatnonzero(lowest < highest)
        if len(wrong):
            rows_of_first = np.flatnonzero(content == wrong[0])
            first = " and ".join(dict.fromkeys(source.name_of(int(row)) for row in rows_of_first[:2]))
            found.append(f"{len(wrong):,} {subject} {what}: {first}")
    return found


def gaps(classes: Sequence[str]) -> list[str]:
    """A sentence about whole numbers that are missing among the names of classes."""
    if len(classes) < 2 or not all(name.isdecimal() for name in classes):
        return []
    numbers = {int(name) for name in classes}
    missing = [number for number in range(min(numbers), max(numbers)) if number not in numbers]
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    return [f"the {len(classes)} classes are the numbers that occur; between them {shown} do not"]


def _checked(wanted: RowsToLoad, progress: OnProgress) -> _Checked:
    """Check all cells and files, and leave out the rows that are skipped.

    Raises:
        DataError: all faults.
    """
    table, roles = wanted.table, wanted.roles
    faults = Faults(table.path)
    modalities = modalities_of(table, wanted.inputs, faults)
    for modality in modalities:
        if modality.of_files:
            resolve(table, wanted.folder, modality, faults)
        elif modality.kind == "numbers":
            check_numbers(table, modality)
    # Files outside the folder are not even looked at.
    for modality in () if faults else modalities:
        if modality.of_files:
            examine(modality, progress)
    kept = leave_out(table, modalities, roles, wanted.on_bad, faults) if modalities else []
    if not kept and not faults:
        faults.add("no row is left")
    task = (wanted.task or task_of(table, roles.targets)) if roles.targets else None
    targets, classes = targets_of(table, roles.targets, wanted.classes, task or "classes", faults)
    groups = {column: filled(table, column, "data.group", faults) for column in roles.groups}
    domain = None if roles.domain is None else filled(table, roles.domain, "data.domain", faults)
    if roles.id is not None:
        check_ids(table, roles.id, faults)
    faults.check()
    for modality in modalities:
        modality.paths = [modality.paths[row] for row in kept] if modality.paths else []
        modality.facts = [modality.facts[row] for row in kept] if modality.facts else []
    numbers = {kind: np.unique([names[row] for row in kept], return_inverse=True)[1] for kind, names in groups.items()}
    return _Checked(
        table=table.rows(kept),
        modalities=modalities,
        targets=_kept(targets, kept),
        classes=classes,
        task=task,
        groups={kind: torch.from_numpy(ids.astype(np.int64)) for kind, ids in numbers.items()},
        domain=None if domain is None else [domain[row] for row in kept],
    )


def _kept(targets: Any, kept: Sequence[int]) -> Any:
    if targets is None:
        return None
    return targets[list(kept)] if isinstance(targets, np.ndarray) else [targets[row] for row in kept]


@dataclass(frozen=True)
class _Input:
    """One input: a tensor or a row source, its specification, the rows that have it, and a sentence about it."""

    values: Any
    spec: Any
    present: list[bool] | None
    said: str


def _input(rows: _Checked, folder: Path, modality: Modality, train: Sequence[int]) -> _Input:
    """One input of the data set.

    Raises:
        DataError: the rendering does not fit the files.
        ShapeError: an array file has another number of rows than the table.
    """
    table, settings = rows.table, modality.settings
    if settings.file is not None:
        tensor = mapped_array(Path(os.path.normpath(folder / settings.file)))
        if len(tensor) != table.whole:
            raise ShapeError(
                f"data.inputs.{modality.name}.file: {settings.file} has {len(tensor):,} rows, and the table "
                f"{table.whole:,}; write one row of the array for each row of the table, in its order"
            )
        return _Input(
            tensor if len(table) == table.whole else tensor[torch.tensor(table.numbers)],
            None,
            None,
            f"{modality.name}: rows of {settings.file}",
        )
    there = [not absent(table, modality, row) for row in range(len(table))]
    present = None if all(there) else there
    shown = ", ".join(map(repr, modality.columns[:3])) + (", ..." if len(modality.columns) > 3 else "")
    where = f"{modality.name}: {'column' if len(modality.columns) == 1 else 'columns'} {shown}"
    if modality.of_files:
        source = _files(modality, folder, train)
        shape = " x ".join(map(str, source.spec.shape))
        return _Input(source, source.spec, present, f"{where}, {modality.kind} files as {source.spec.kind} {shape}")
    if modality.kind == "text":
        texts = [None if cell is None else str(cell) for cell in table.columns[modality.columns[0]]]
        chosen = rendering_for(settings, "text", [])
        assert isinstance(chosen, TextRendering)
        reads = "bytes" if chosen.tokenizer is None else f"tokens of {chosen.tokenizer}"
        text_source = TextSource(texts, chosen)
        return _Input(text_source, text_source.spec, present, f"{where}, text as {chosen.length} {reads}")
    values, numbers = _numbers(table, modality, train)
    said = f"{where}, {len(modality.columns)} numbers" + (", standardised on training rows" if numbers.mean else "")
    return _Input(values, numbers.spec((len(modality.columns),)), present, said)


def _files(modality: Modality, folder: Path, train: Sequence[int]) -> FileSource:
    files = Files(modality.file_kind, str(folder), modality.paths, modality.facts)
    shapes = [one.shape for one in modality.facts if one is not None]
    rendering = rendering_for(modality.settings, modality.kind, shapes)
    if modality.settings.normalise and unmeasured(rendering):
        rendering = measured(rendering, files, train)
    return FileSource(files, rendering)


def _numbers(table: Table, modality: Modality, train: Sequence[int]) -> tuple[Tensor, ArrayRendering]:
    cells = [table.columns[column] for column in modality.columns]
    values = np.array([[np.nan if cell is None else float(cell) for cell in one] for one in cells]).T
    own = values[list(train)]
    own = own[~np.isnan(own).any(1)]
    rendering = ArrayRendering()
    if modality.settings.normalise and len(own):
        spread = tuple(float(f"{value:.6g}") if value > 1e-9 else 1.0 for value in own.std(0))
        rendering = ArrayRendering(mean=tuple(float(f"{value:.6g}") for value in own.mean(0)), deviation=spread)
    return rendering.apply(torch.from_numpy(values)).nan_to_num(0.0), rendering
