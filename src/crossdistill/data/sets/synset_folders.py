"""Sets of pictures in folders of WordNet synsets (`n01440764`): the common part of Tiny-ImageNet and ImageNet.

Rows are in the order of synset and file name, training files first, as `ImageFolder` of torchvision lists them; the
classes are in the order of their synsets, which is that of the public networks.
"""

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.data.cache import CacheEntry
from crossdistill.data.config import DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.data.input_column import InputColumn
from crossdistill.data.picture_file import PICTURE_FILES
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.split import drawn_by_class
from crossdistill.data.table_cells import OnBad, Roles
from crossdistill.data.table_file import Table
from crossdistill.data.table_rows import RowsToLoad, dataset_of
from crossdistill.errors import DataError

FILE, LABEL, SPLIT = "file", "class", "split"
SYNSET = re.compile(r"n\d{8}")
TINY_ROWS = 240
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Listed:
    """The files of a set relative to its folder, each with its synset: of training, and of the labelled test."""

    train: Sequence[tuple[str, str]]
    test: Sequence[tuple[str, str]]
    names: Mapping[str, str]
    """Synset -> words, as the set has them."""


class SynsetConfig(DataConfig):
    """A folder with train/ and val/, in which each synset of the training part has a folder."""

    of_files: ClassVar[bool] = True
    rendering: ClassVar[PictureRendering]

    validation: float = Field(
        default=0.1, gt=0, lt=1, description="part of the training pictures, the same of each class, for validation"
    )
    rows: int | None = Field(
        default=None, ge=20, description="at most so many training and validation pictures; null: all"
    )
    on_bad: OnBad = Field(default="refuse", description="skip: leave out pictures that cannot be read")

    @abstractmethod
    def source(self) -> Path:
        """The folder that holds train/ and val/.

        Raises:
            DataError: there is none; names the folders that are looked for.
        """

    @abstractmethod
    def listed(self, folder: Path) -> Listed:
        """The files of the set.

        Raises:
            DataError: files or labels are missing; names them.
        """

    def cached(self) -> CacheEntry | None:
        """None: pictures are read from their files."""
        return None

    def tiny(self) -> "SynsetConfig":
        """A few hundred of the pictures."""
        return self.model_copy(update={"rows": min(self.rows or TINY_ROWS, TINY_ROWS)})

    def build(self, progress: OnProgress) -> Dataset:
        """The pictures of the folder, decoded when a batch needs them.

        Raises:
            DataError: all faults of the folder and its files.
            MissingExtraError: Pillow is not installed.
        """
        folder = Path(os.path.abspath(self.source()))
        listed = self.listed(folder)
        synsets = sorted({synset for _, synset in listed.train})
        unknown = sorted({synset for _, synset in listed.test} - set(synsets))
        if unknown:
            raise DataError(f"{folder}: val has {', '.join(unknown[:SHOWN])}, which train has no folder of")
        number = {synset: place for place, synset in enumerate(synsets)}
        targets = [torch.tensor([number[synset] for _, synset in part]) for part in (listed.train, listed.test)]
        kept = [torch.arange(len(part)) for part in targets]
        if self.rows is not None and self.rows < len(kept[0]):
            test = max(20, self.rows * len(kept[1]) // len(kept[0]))
            wanted = self.rows, min(test, len(kept[1]))
            kept = [
                drawn_by_class(of, rows, count, self.seed)
                for of, rows, count in zip(targets, kept, wanted, strict=True)
            ]
        train = [listed.train[row] for row in kept[0].tolist()]
        test_rows = [listed.test[row] for row in kept[1].tolist()]
        classes = class_names(synsets, listed.names)
        files = [*train, *test_rows]
        columns: dict[str, list[object]] = {
            FILE: [path for path, _ in files],
            LABEL: [classes[number[synset]] for _, synset in files],
            SPLIT: [*["train"] * len(train), *["test"] * len(test_rows)],
        }
        table = Table(folder, columns, list(range(1, len(files) + 1)))
        return dataset_of(
            RowsToLoad(
                name=self.name,
                table=table,
                folder=folder,
                inputs={"image": InputColumn(column=FILE, type="image", rendering=self.rendering)},
                roles=Roles(targets=(LABEL,), split=SPLIT),
                split=self._split,
                classes=classes,
                on_bad=self.on_bad,
            ),
            progress,
        )

    def _split(
        self, targets: Tensor, kind: str, groups: Mapping[str, Tensor], table: Table
    ) -> tuple[dict[str, Tensor], str]:
        tests = torch.tensor([name == "test" for name in table.columns[SPLIT]])
        train, test = (~tests).nonzero()[:, 0], tests.nonzero()[:, 0]
        validation = drawn_by_class(targets, train, max(1, round(self.validation * len(train))), self.seed)
        rest = torch.ones(len(targets), dtype=torch.bool).index_fill(0, validation, False)
        splits = {"train": train[rest[train]], "validation": validation, "test": test}
        return splits, "the test split is the official val; validation is drawn from train by class"


def class_names(synsets: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The first word of each synset, such as "tench"; all its words, or the synset itself, where that is not unique."""
    found = [names.get(synset, synset).partition(",")[0].strip() or synset for synset in synsets]
    for longer in ([names.get(synset, synset) for synset in synsets], list(synsets)):
        twice = {name for name, count in Counter(found).items() if count > 1}
        found = [other if name in twice else name for name, other in zip(found, longer, strict=True)]
    return tuple(found)


def files_of_synsets(folder: Path, part: str, inner: str = "") -> list[tuple[str, str]]:
    """The pictures below `part/SYNSET`, or `part/SYNSET/inner` where there is such a folder, each with its synset."""
    found = []
    for synset in sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir()):
        if not SYNSET.fullmatch(synset):
            continue
        below = f"{part}/{synset}"
        if inner and (folder / below / inner).is_dir():
            below = f"{below}/{inner}"
        found += [(f"{below}/{name}", synset) for name in pictures_in(folder / below)]
    return found


def pictures_in(folder: Path) -> list[str]:
    """Names of the pictures directly in a folder, in their order."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(PICTURE_FILES))


def words_in(path: Path) -> dict[str, str]:
    """Synset -> words of a text with a synset and its words in each line, after a tab or a space.

    Raises:
        DataError: the file is not UTF-8, or a line is something else; names it.
    """
    names = {}
    for number, line in enumerate(lines_of(path), 1):
        synset, _, words = line.replace("\t", " ", 1).partition(" ")
        if not SYNSET.fullmatch(synset) or not words.strip():
            raise DataError(f"{path}, line {number}: {line[:80]!r}; wanted a synset such as n01440764, and its words")
        names[synset] = words.strip()
    return names


def lines_of(path: Path) -> list[str]:
    """The lines of a text that are not empty.

    Raises:
        DataError: it cannot be read as UTF-8; names it.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
