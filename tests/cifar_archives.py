"""Small archives in the layout of the official CIFAR ones, pickled as Python 2 did (protocol 2, numpy 1)."""

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Pickled:
    """A dict as cPickle of Python 2 wrote it: strings of bytes, each remembered in the memo."""

    def __init__(self) -> None:
        self.remembered = 0

    def of(self, values: Mapping[str, Any]) -> bytes:
        entries = b"".join(self.value(key) + self.value(value) for key, value in values.items())
        self.remembered += 1
        return b"\x80\x02}q\x01(" + entries + b"u."

    def value(self, value: Any) -> bytes:
        if isinstance(value, str):
            form = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
            return form + value.encode() + self.remember()
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        if isinstance(value, list):
            head = b"]" + self.remember() + b"("
            return head + b"".join(map(self.value, value)) + b"e"
        assert isinstance(value, np.ndarray)
        rows, columns = (b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n) for n in value.shape)
        dtype = (
            b"cnumpy\ndtype\n" + self.remember() + b"U\x02u1" + self.remember() + b"K\x00K\x01\x87" + self.remember()
        )
        dtype += b"R" + self.remember() + b"(K\x03U\x01|" + self.remember() + b"NNN" + b"J\xff\xff\xff\xff" * 2
        dtype += b"K\x00t" + self.remember() + b"b"
        content = value.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n" + self.remember() + b"cnumpy\nndarray\n" + self.remember()
            + b"K\x00\x85" + self.remember() + b"U\x01b" + self.remember() + b"\x87" + self.remember()
            + b"R" + self.remember() + b"(K\x01" + rows + columns + b"\x86" + self.remember() + dtype + b"\x89"
            + b"T" + struct.pack("<i", len(content)) + content + self.remember() + b"t" + self.remember() + b"b"
        )  # fmt: skip

    def remember(self) -> bytes:
        self.remembered += 1
        number = self.remembered + 1
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)


def batch(rows: int, label: str, numbers: Sequence[int], seed: int, **more: Any) -> bytes:
    """A file of pictures whose mean grows with their class."""
    rng = np.random.default_rng(seed)
    means = np.array(numbers)[:, None] * (200 // max(1, max(numbers))) + 20
    data = np.clip(means + rng.normal(0, 10, (rows, 3072)), 0, 255).astype(np.uint8)
    names = [f"picture_{seed}_{row}.png" for row in range(rows)]
    return Pickled().of({"batch_label": f"part {seed}", label: list(numbers), **more, "data": data, "filenames": names})


def files10(rows: int = 20) -> dict[str, bytes]:
    """The files of CIFAR-10's archive: five training files and a test file of so many pictures each."""
    parts = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    numbers = [row % 10 for row in range(rows)]
    files = {name: batch(rows, "labels", numbers, seed) for seed, name in enumerate(parts)}
    return files | {"batches.meta": meta10()}


def meta10() -> bytes:
    """CIFAR-10's batches.meta, byte by byte."""
    return Pickled().of({"num_cases_per_batch": 10000, "label_names": list(NAMES10), "num_vis": 3072})


def files100(rows: int = 200, classes: int = 100) -> dict[str, bytes]:
    """The files of CIFAR-100's archive, with other names of classes."""
    numbers = [row % classes for row in range(rows)]
    coarse = [number // 5 for number in numbers]
    files = {
        name: batch(rows, "fine_labels", numbers, seed, coarse_labels=coarse)
        for seed, name in enumerate(("train", "test"))
    }
    names = {
        "fine_label_names": [f"fine_{n}" for n in range(classes)],
        "coarse_label_names": [f"c{n}" for n in range(20)],
    }
    return files | {"meta": Pickled().of(names)}


FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def write_archive(root: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """The archive of `cifar10` or `cifar100` with these files."""
    folder, archive = FOLDERS[name]
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / archive, "w:gz") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(file if "/" in file else f"{folder}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return root / archive
