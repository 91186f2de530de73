"""`cifar10` and `cifar100`: 60,000 pictures of 32x32 from the official python archives, in their order.

Row i is picture i of the training files for i below 50,000, and picture i - 50,000 of the test file above, so that
results of other programs can be matched by index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from crossdistill.data import cache
from crossdistill.data.archive import read_files
from crossdistill.data.config import ROOT_VARIABLE, DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.pictures import Pictures
from crossdistill.data.plain_pickle import read_plain
from crossdistill.data.rendering import PictureRendering, rendering_of
from crossdistill.data.split import drawn_by_class
from crossdistill.data.stored import open_stored, store
from crossdistill.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
TINY_ROWS = {"cifar10": 400, "cifar100": 1000}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCES = (Licence("pictures", "not stated by their authors", f"CIFAR (Krizhevsky 2009), {ADDRESS}", None),)


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of an official archive, and the names of what they hold."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    targets: Mapping[str, tuple[str, str]]
    """Kind of targets -> the key of the numbers, and the key of the names in `meta`."""


CIFAR10 = Layout(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    targets={"fine": ("labels", "label_names")},
)
CIFAR100 = Layout(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    targets={"fine": ("fine_labels", "fine_label_names"), "coarse": ("coarse_labels", "coarse_label_names")},
)


class CifarConfig(DataConfig):
    """The archive as it is downloaded, or the folder that it was unpacked to."""

    layout: ClassVar[Layout]
    rendering: ClassVar[PictureRendering]
    """The normalisation of mdistiller's and RepDistiller's recipes."""

    archive: Path | None = Field(
        default=None, description="the official archive (.tar.gz), or its unpacked folder; null: found in root"
    )
    validation: float = Field(
        default=0.1, gt=0, lt=1, description="part of the training pictures, the same of each class, for validation"
    )
    rows: int | None = Field(
        default=None, ge=20, description="at most so many training and validation pictures; null: all"
    )

    def build(self, progress: OnProgress) -> Dataset:
        """The data with all labels, from the cache, or else read and stored in it.

        Raises:
            DataError: the archive is missing, truncated or another one (names the file and says what to do).
        """
        return _as_pictures(open_stored(cache.keep(self.name, self.recipe(), lambda folder: self._store(folder))))

    def cached(self) -> cache.CacheEntry | None:
        """The cache entry of these data; None if they are not built yet."""
        return cache.find(self.name, self.recipe())

    def tiny(self) -> "CifarConfig":
        """The same data with 40 pictures of each class of ten, or ten of each of a hundred."""
        return self.model_copy(update={"rows": TINY_ROWS[self.name]})

    def recipe(self) -> dict[str, Any]:
        """Everything that the content depends on; the cache entry is named by a hash of it."""
        source = self.source()
        files = [source] if source.is_file() else [source / name for name in self._names() if (source / name).exists()]
        fields = self.model_dump(mode="json", include={"seed", "rows", "validation"})
        return {"code": cache.code_key(), **fields, "targets": self._targets(), "files": cache.content_key(files)}

    def source(self) -> Path:
        """The archive, or its unpacked folder.

        Raises:
            DataError: there is none in `root`; names the files that are looked for.
        """
        if self.archive is not None:
            path = self.archive.expanduser()
            if not path.exists():
                raise DataError(f"{self.name}: {path} does not exist (data.archive)")
            return path
        root, layout = self.folder(), self.layout
        if (root / layout.meta).is_file() and (root / layout.test).is_file():
            return root
        for path in (root / layout.folder, root / layout.archive):
            if path.exists():
                return path
        raise DataError(
            f"{self.name}: {root} holds neither {layout.archive} nor the folder {layout.folder} (data.root or "
            f"{ROOT_VARIABLE}); download {layout.archive} from {ADDRESS} to it, or name it by data.archive"
        )

    def _names(self) -> tuple[str, ...]:
        return (*self.layout.train, self.layout.test, self.layout.meta)

    def _targets(self) -> str:
        return "fine"

    def _store(self, folder: Path) -> None:
        source, layout = self.source(), self.layout
        files = read_files(source, layout.folder, self._names())
        key, names = layout.targets[self._targets()]
        classes = _classes(files[layout.meta], names, f"{source}: {layout.meta}")
        parts = [_batch(files[name], key, len(classes), f"{source}: {name}") for name in (*layout.train, layout.test)]
        targets = torch.from_numpy(np.concatenate([numbers for _, numbers in parts]))
        tests = len(parts[-1][0])
        splits = self._splits(targets, len(targets) - tests)
        about = (
            f"{len(targets):,} pictures of {SIDE}x{SIDE} in {len(classes)} classes, in the official order; "
            f"the official test split of {tests:,}; validation pictures are drawn from the training files by class."
        )
        store(
            folder,
            Dataset(
                name=self.name,
                inputs={"image": torch.from_numpy(np.concatenate([pictures for pictures, _ in parts]))},
                targets=targets,
                classes=classes,
                splits=splits,
                input_specs={"image": self.rendering.spec(self.rendering.shape)},
                fingerprint="",
                about=about,
                licences=LICENCES,
            ),
        )

    def _splits(self, targets: Tensor, first_test: int) -> dict[str, Tensor]:
        train, test = torch.arange(first_test), torch.arange(first_test, len(targets))
        if self.rows is not None:
            rows = min(self.rows, len(train))
            test = drawn_by_class(targets, test, max(1, rows * len(test) // len(train)), self.seed)
            train = drawn_by_class(targets, train, rows, self.seed)
        validation = drawn_by_class(targets, train, max(1, round(self.validation * len(train))), self.seed)
        rest = torch.ones(len(targets), dtype=torch.bool).index_fill(0, validation, False)
        return {"train": train[rest[train]], "validation": validation, "test": test}


class Cifar10Config(CifarConfig):
    """CIFAR-10: 60,000 colour pictures of 32x32 in 10 classes."""

    layout: ClassVar[Layout] = CIFAR10
    rendering: ClassVar[PictureRendering] = PictureRendering(
        size=(SIDE, SIDE), mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616)
    )
    name: Literal["cifar10"] = "cifar10"


class Cifar100Config(CifarConfig):
    """CIFAR-100: 60,000 colour pictures of 32x32 in 100 classes, or in their 20 superclasses."""

    layout: ClassVar[Layout] = CIFAR100
    rendering: ClassVar[PictureRendering] = PictureRendering(
        size=(SIDE, SIDE), mean=(0.5071, 0.4867, 0.4408), deviation=(0.2675, 0.2565, 0.2761)
    )
    name: Literal["cifar100"] = "cifar100"
    labels: Literal["fine", "coarse"] = Field(default="fine", description="fine: 100 classes; coarse: 20 superclasses")

    def _targets(self) -> str:
        return self.labels


def _as_pictures(stored: Dataset) -> Dataset:
    """The stored data with pictures that are normalised when a batch needs them."""
    rendering = rendering_of(stored.input_specs["image"], stored.name)
    values = stored.inputs["image"]
    assert isinstance(rendering, PictureRendering)
    assert isinstance(values, Tensor)
    return replace(stored, inputs={"image": Pictures(values, rendering, stored.fingerprint)})


def _classes(content: bytes, key: str, where: str) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
        DataError: the file has none.
    """
    names = _entry(read_plain(content, where), key, where)
    if not isinstance(names, list) or not names:
        raise DataError(f"{where}: {key} is {type(names).__name__}; wanted a list of names")
    try:
        return tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {key}: {error}") from error


def _batch(content: bytes, key: str, classes: int, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures (n, 3, 32, 32) of a file, and their classes (n,).

    Raises:
        DataError: other shapes or types, or a class that has no name.
    """
    values = read_plain(content, where)
    pictures, numbers = _entry(values, "data", where), _entry(values, key, where)
    if not (isinstance(pictures, np.ndarray) and pictures.dtype == np.uint8 and pictures.shape[1:] == (PIXELS,)):
        shape = getattr(pictures, "shape", type(pictures).__name__)
        raise DataError(f"{where}: data is {shape}; wanted bytes of shape (pictures, {PIXELS})")
    if isinstance(numbers, Sequence) and not all(isinstance(number, int) for number in numbers):
        raise DataError(f"{where}: {key} holds others than whole numbers")
    targets = np.asarray(numbers)
    if targets.shape != pictures.shape[:1] or targets.dtype.kind not in "iu" or not len(targets):
        raise DataError(f"{where}: {key} has shape {targets.shape}, for {len(pictures)} pictures; wanted one for each")
    names = values.get("filenames", values.get(b"filenames"))
    if names is not None and len(names) != len(pictures):
        raise DataError(f"{where}: filenames has {len(names)} entries, for {len(pictures)} pictures")
    if targets.min() < 0 or targets.max() >= classes:
        raise DataError(f"{where}: {key} goes from {targets.min()} to {targets.max()}, and {classes} classes are named")
    return pictures.reshape(-1, 3, SIDE, SIDE), targets.astype(np.int64)


def _entry(values: Any, key: str, where: str) -> Any:
    """The entry of a file; the official ones have the strings of Python 2 as keys."""
    entries = values if isinstance(values, dict) else {}
    for name in (key.encode(), key):
        if name in entries:
            return entries[name]
    shown = ", ".join(str(name.decode("utf-8", "replace") if isinstance(name, bytes) else name) for name in entries)
    raise DataError(f"{where}: has no {key!r}, but {shown or 'no entries'}; take the file from its official archive")
