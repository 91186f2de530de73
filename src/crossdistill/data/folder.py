"""`folder`: your own pictures, recordings or arrays, in a folder for each class, or in one folder without labels."""

import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.data.file_facts import SUFFIXES, FileKind
from crossdistill.data.input_column import InputColumn
from crossdistill.data.own_rows import OwnRowsConfig
from crossdistill.data.own_splits import split_called
from crossdistill.data.table_cells import Roles
from crossdistill.data.table_file import Table
from crossdistill.data.table_rows import RowsToLoad, dataset_of
from crossdistill.errors import DataError

FILE, LABEL, SPLIT = "file", "class", "split"
SHOWN = 5
"""Folders that a fault lists; the rest are counted."""
WORDS = {"image": "pictures", "sound": "recordings", "array": "array files"}


class FolderConfig(OwnRowsConfig):
    """Your own pictures, recordings or arrays: a folder for each class, or one folder without labels."""

    name: Literal["folder"] = "folder"
    type: FileKind | None = Field(default=None, description="of the files; null: guessed")
    size: tuple[int, int] | None = Field(default=None, description="height and width of pictures, in pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="of pictures: 1 grey, 3 colours")
    rate: int | None = Field(default=None, description="of recordings, in hertz")
    seconds: Annotated[float, Field(gt=0)] | None = Field(default=None, description="length of recordings")
    unlabelled: bool = Field(default=False, description="read no targets from the names of folders")

    def about(self) -> str:
        """What `path` is."""
        return "a folder of pictures, recordings or .npy files, with a folder for each class or without"

    def build(self, progress: OnProgress) -> Dataset:
        """The files of the folder, decoded when a batch needs them.

        Raises:
            DataError: all faults of the folder and its files.
            MissingExtraError: the package that reads them is not installed.
        """
        folder = Path(os.path.normpath(self.source()))
        table, kind, notes = listed(folder, self.type)
        target = None if self.unlabelled or LABEL not in table.columns else LABEL
        split = SPLIT if SPLIT in table.columns and self.folds is None else None
        table = self.limited(table, (target,) if target else (), split)
        settings = InputColumn(
            column=FILE, type=kind, size=self.size, channels=self.channels, rate=self.rate, seconds=self.seconds
        )
        return dataset_of(
            RowsToLoad(
                name=folder.name or "folder",
                table=table,
                folder=folder,
                inputs={kind: settings},
                roles=Roles(targets=(target,) if target else (), split=split),
                split=functools.partial(self.drawn, split=split),
                on_bad=self.on_bad,
                notes=notes,
            ),
            progress,
        )


def listed(folder: Path, wanted: FileKind | None) -> tuple[Table, FileKind, list[str]]:
    """A folder's files as a table (file, class, split), their kind, and sentences about what was guessed.

    Folders called train, validation (val) and test are splits; those below them, or else at the top, are classes. One
    folder alone that is called so is no split, and the folders below it are classes.

    Raises:
        DataError: no folder, no file that can be read, files of several kinds, files beside folders of classes, or
            folders of splits beside others.
    """
    if not folder.is_dir():
        what = "is a file; a table of files is the data 'table'" if folder.is_file() else "there is no such folder"
        raise DataError(f"{folder}: {what}")
    names, others = _files(folder)
    kinds = Counter(kind for kind, _ in names)
    most: FileKind = kinds.most_common(1)[0][0] if kinds else "image"
    if wanted is None and len(kinds) > 1:
        said = ", ".join(f"{count:,} {WORDS[kind]}" for kind, count in kinds.most_common())
        raise DataError(
            f"{folder}: holds {said}; name the kind that is the input, as in --set data.type={most}, or "
            "write a table with a column for each"
        )
    kind = wanted or most
    paths = sorted(path for other, path in names if other == kind)
    if not paths:
        found = (
            f"; its {sum(others.values()):,} files end in {', '.join(sorted(others)[:8])}"
            if others
            else ": it is empty"
        )
        raise DataError(f"{folder}: no {WORDS[kind]} ({', '.join(SUFFIXES[kind])}){found}")
    skipped = len(names) - len(paths) + sum(others.values())
    notes = [f"{skipped:,} other files are not read"] if skipped else []
    columns: dict[str, list[object]] = {FILE: list(paths)}
    splits, depth = _splits(folder, paths, notes)
    if splits is not None:
        columns[SPLIT] = splits
    labels = [_part(path, depth) for path in paths]
    classes = {label for label in labels if label is not None}
    if classes and None in labels:
        first = paths[labels.index(None)]
        raise DataError(
            f"{folder}: {labels.count(None):,} files are in no class's folder, first {first}, beside the folders "
            f"{', '.join(sorted(map(str, classes))[:5])}; put each into one, or all into one folder"
        )
    if len(classes) > 1:
        columns[LABEL] = list(labels)
    else:
        notes.append("without a folder for each class: no labels")
    return Table(folder, columns, list(range(1, len(paths) + 1))), kind, notes


def _splits(folder: Path, paths: Sequence[str], notes: list[str]) -> tuple[list[object] | None, int]:
    """The split of each file by its folder at the top, if those name splits, and the depth of the classes' folders.

    Raises:
        DataError: some folders at the top name splits, and others do not.
    """
    top = [_part(path, 0) for path in paths]
    named = {name: split_called(name) for name in dict.fromkeys(top)}
    if None in top or not any(named.values()):
        return None, 0
    if len(named) == 1:
        if any(_part(path, 1) is not None for path in paths):
            notes.append(f"the folder {top[0]} alone is no split; the folders below it are classes")
        return None, 1
    others = sorted(str(name) for name, split in named.items() if split is None)
    if others:
        of_splits = sorted(str(name) for name, split in named.items() if split is not None)
        more = f" and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
        raise DataError(
            f"{folder}: the folders {', '.join(of_splits)} name splits, beside {', '.join(others[:SHOWN])}{more}, "
            "which name none; if they are splits, move the others away; if all are classes, rename them or write a "
            "table of the files (data.name=table)"
        )
    notes.append(f"the folders {', '.join(sorted(map(str, named)))} are splits")
    return [named[name] for name in top], 1


def _part(path: str, depth: int) -> str | None:
    """The folder at a depth of a path, one object for all of that name; None: the file itself is there."""
    parts = path.split(os.sep, depth + 1)
    return sys.intern(parts[depth]) if len(parts) > depth + 1 else None


def _files(folder: Path) -> tuple[list[tuple[FileKind, str]], Counter[str]]:
    """The files that are read, each with its kind, relative to the folder, and the suffixes of others.

    Names that begin with a dot are skipped; links to folders are followed once.
    """
    start = len(os.path.join(folder, ""))
    of_suffix = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
    found: list[tuple[FileKind, str]] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in of_suffix:
                found.append((of_suffix[suffix], os.path.join(top, name)[start:]))
            else:
                others[suffix or "(none)"] += 1
    return found, others
