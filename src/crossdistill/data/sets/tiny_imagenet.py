"""`tiny-imagenet`: 100,000 pictures of 64x64 in 200 classes, and the labelled val of 10,000 as the test."""

from pathlib import Path
from typing import ClassVar, Literal

from crossdistill.data.config import ROOT_VARIABLE
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.sets.synset_folders import Listed, SynsetConfig, files_of_synsets, lines_of, words_in
from crossdistill.errors import DataError

FOLDER, ANNOTATIONS = "tiny-imagenet-200", "val_annotations.txt"
ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class TinyImagenetConfig(SynsetConfig):
    """Tiny-ImageNet: 110,000 colour pictures of 64x64 in 200 classes, from its unpacked folder."""

    rendering: ClassVar[PictureRendering] = PictureRendering(
        size=(64, 64), mean=(0.4802, 0.4481, 0.3975), deviation=(0.2302, 0.2265, 0.2262)
    )
    name: Literal["tiny-imagenet"] = "tiny-imagenet"

    def source(self) -> Path:
        """The folder `tiny-imagenet-200`, in `root` or `root` itself.

        Raises:
            DataError: neither holds train and val.
        """
        root = self.folder()
        for path in (root / FOLDER, root):
            if (path / "train").is_dir() and (path / "val").is_dir():
                return path
        raise DataError(
            f"tiny-imagenet: {root} holds no folder {FOLDER} with train and val (data.root or {ROOT_VARIABLE}); "
            f"download {ADDRESS} and unpack it there"
        )

    def listed(self, folder: Path) -> Listed:
        """The files of train/SYNSET/images, and those of val by `val_annotations.txt` or by folders of synsets.

        Raises:
            DataError: there are no pictures, or val has no labels.
        """
        words = folder / "words.txt"
        train = files_of_synsets(folder, "train", "images")
        if not train:
            raise DataError(f"{folder}: train has no folders of synsets with pictures (train/n01443537/images/...)")
        annotations = folder / "val" / ANNOTATIONS
        test = _annotated(annotations) if annotations.is_file() else files_of_synsets(folder, "val", "images")
        if not test:
            raise DataError(f"{folder}: val has no {ANNOTATIONS} and no folders of synsets; unpack the archive again")
        return Listed(train, test, words_in(words) if words.is_file() else {})


def _annotated(path: Path) -> list[tuple[str, str]]:
    """The files that the annotations name, with their synsets, in the order of their numbers.

    Raises:
        DataError: a line is no annotation.
    """
    found = []
    for number, line in enumerate(lines_of(path), 1):
        cells = line.split("\t")
        if len(cells) < 2 or "/" in cells[0] or "\\" in cells[0]:
            raise DataError(f"{path}, line {number}: {line[:80]!r}; wanted a file, a tab and its synset")
        found.append((f"val/images/{cells[0]}", cells[1]))
    return sorted(found, key=lambda one: (len(one[0]), one[0]))
