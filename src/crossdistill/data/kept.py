"""Decoded files kept in memory that all data workers share, so that a small data set is decoded once."""

import mmap
import multiprocessing
import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEFAULT_MB = 256
"""Most megabytes (10⁶ bytes) of decoded pictures that are kept by default."""


class KeptPictures:
    """Memory for pictures as bytes (channels, height, width), which processes forked later write and read too.

    The operating system provides a page of it when a picture is first written there. A lock orders a picture before the
    note that it is there.
    """

    def __init__(self, shapes: NDArray[np.int64]) -> None:
        """`shapes` (N, dimensions) has -1 in rows without a picture."""
        self._shapes = shapes
        self._ends = np.concatenate([[0], _sizes(shapes).cumsum()])
        self._values = np.frombuffer(mmap.mmap(-1, max(1, int(self._ends[-1]))), dtype=np.uint8)
        self._there = np.frombuffer(mmap.mmap(-1, max(1, len(shapes))), dtype=np.uint8)
        self._lock = multiprocessing.get_context("fork").Lock()

    @staticmethod
    def of(shapes: NDArray[np.int64], most_bytes: int) -> "KeptPictures | None":
        """Memory for pictures of these shapes; None if they take more, or if workers here are not forked."""
        size = int(_sizes(shapes).sum())
        return KeptPictures(shapes) if sys.platform == "linux" and 0 < size <= most_bytes else None

    @property
    def bytes(self) -> int:
        """Size of all pictures in bytes."""
        return int(self._ends[-1])

    def there(self, rows: Sequence[int]) -> list[bool]:
        """Whether each of these rows is kept."""
        with self._lock:
            found: list[bool] = self._there[list(rows)].astype(bool).tolist()
        return found

    def picture(self, row: int) -> Tensor:
        """The picture of a row that is kept; nobody may write to it."""
        values = self._values[self._ends[row] : self._ends[row + 1]]
        return torch.from_numpy(values).view(self._shapes[row].tolist())

    def keep(self, pictures: dict[int, Tensor]) -> None:
        """Keep pictures by row; those of another shape or of more than 8 bits are left out."""
        kept = []
        for row, picture in pictures.items():
            if picture.dtype == torch.uint8 and list(picture.shape) == self._shapes[row].tolist():
                self._values[self._ends[row] : self._ends[row + 1]] = picture.numpy().reshape(-1)
                kept.append(row)
        with self._lock:
            self._there[kept] = 1


def _sizes(shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of each picture (N,); 0 for a row without one."""
    if not shapes.size:
        return np.zeros(len(shapes), dtype=np.int64)
    return np.where((shapes < 0).any(1), 0, shapes.prod(1))
