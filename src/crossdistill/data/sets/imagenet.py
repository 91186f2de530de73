"""`imagenet`: ILSVRC 2012, 1,281,167 pictures in 1,000 classes, and the val of 50,000 as the test.

The labels of val are those of its folders of synsets, or of a text beside a flat val: `LOC_val_solution.csv` of
Kaggle, a synset in each line in the order of the files, or a file with its synset or class number in each line.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from crossdistill.data.config import ROOT_VARIABLE
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.sets.synset_folders import (
    SYNSET,
    Listed,
    SynsetConfig,
    files_of_synsets,
    lines_of,
    pictures_in,
    words_in,
)
from crossdistill.errors import DataError

FOLDERS = ("", "imagenet", "ImageNet", "imagenet2012", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
"""Where train and val are looked for, below `root`."""
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
LABELS = (
    "LOC_val_solution.csv",
    "val_annotations.txt",
    "val.txt",
    "ILSVRC2012_validation_synset_labels.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "validation_synset_labels.txt",
)
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
UP = 4
"""Folders above train and val in which texts are looked for: Kaggle has them beside ILSVRC."""


class ImagenetConfig(SynsetConfig):
    """ImageNet (ILSVRC 2012): 1.3 million colour pictures in 1,000 classes, from its unpacked folders."""

    rendering: ClassVar[PictureRendering] = PictureRendering(
        size=(224, 224), shortest=256, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)
    )
    name: Literal["imagenet"] = "imagenet"

    def source(self) -> Path:
        """The folder with train and val: `root`, or one of the usual ones below it.

        Raises:
            DataError: there is none.
        """
        root = self.folder()
        for name in FOLDERS:
            if (root / name / "train").is_dir() and (root / name / "val").is_dir():
                return root / name
        raise DataError(
            f"imagenet: {root} holds no train and val, nor do {', '.join(FOLDERS[1:])} below it (data.root or "
            f"{ROOT_VARIABLE}); unpack ILSVRC2012_img_train.tar into train/SYNSET and ILSVRC2012_img_val.tar into val"
        )

    def listed(self, folder: Path) -> Listed:
        """The files of train/SYNSET, and those of val with their labels.

        Raises:
            DataError: there are no pictures, or val has no labels.
        """
        train = files_of_synsets(folder, "train")
        if not train:
            raise DataError(
                f"{folder}: train has no folders of synsets with pictures (train/n01440764/...); unpack each "
                "n........tar of ILSVRC2012_img_train.tar into a folder of its name"
            )
        words = self._found(folder, WORDS)
        synsets = sorted({synset for _, synset in train})
        test = files_of_synsets(folder, "val") or self._flat(folder, synsets)
        return Listed(train, test, words_in(words) if words is not None else {})

    def _flat(self, folder: Path, synsets: Sequence[str]) -> list[tuple[str, str]]:
        names = pictures_in(folder / "val")
        labels = self._found(folder, LABELS)
        if not names or labels is None:
            devkit = self._found(folder, (DEVKIT,))
            more = f"; {devkit.name} has numbers of the development kit, whose synsets are in a .mat" if devkit else ""
            raise DataError(
                f"{folder}: val has {len(names):,} pictures and no folders of synsets, and no {', '.join(LABELS)} is "
                f"beside it{more}; move the pictures into val/SYNSET, or add one of these texts"
            )
        of_file = _labels(labels, names, synsets)
        missing = [name for name in names if Path(name).stem not in of_file]
        if missing:
            raise DataError(f"{labels}: has no label of {missing[0]} and {len(missing) - 1:,} other pictures of val")
        return [(f"val/{name}", of_file[Path(name).stem]) for name in names]

    def _found(self, folder: Path, names: Sequence[str]) -> Path | None:
        """The first of these files in the folder, in val, or above it up to the root."""
        above = [folder, folder / "val", *list(folder.parents)[:UP]]
        root = Path(self.folder()).resolve()
        for place in above:
            if place.resolve() != root and root not in place.resolve().parents:
                continue
            for name in names:
                if (place / name).is_file():
                    return place / name
        return None


def _labels(path: Path, names: Sequence[str], synsets: Sequence[str]) -> dict[str, str]:
    """Stem of a file -> its synset.

    Raises:
        DataError: a line is none of the known forms, or there are more or fewer lines than files.
    """
    lines = lines_of(path)
    if path.suffix == ".csv":
        lines = lines[1:]
    if all(SYNSET.fullmatch(line) for line in lines):
        if len(lines) != len(names):
            raise DataError(f"{path}: has {len(lines):,} lines, and val {len(names):,} pictures; wanted one for each")
        return {Path(name).stem: synset for name, synset in zip(names, lines, strict=True)}
    found = {}
    for number, line in enumerate(lines, 1):
        cells = re.split(r"[\s,]+", line)
        label = cells[1] if len(cells) > 1 else ""
        if label.isdecimal() and int(label) < len(synsets):
            label = synsets[int(label)]
        if not SYNSET.fullmatch(label):
            raise DataError(f"{path}, line {number}: {line[:80]!r}; wanted a file, and its synset or class number")
        found[Path(cells[0]).stem] = label
    return found
