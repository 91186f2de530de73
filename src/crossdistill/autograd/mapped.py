"""Tensors in memory-mapped files, for large values that are needed once per step or epoch.

The files have no names: they are removed with the tensors, also if the process is killed. Their part in memory is page
cache, which the operating system can reclaim.
"""

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.runtime.files import reserve, storage_error

PART_BYTES = 16 * 2**20
"""Bytes that are processed before their pages are released."""

FEW_BYTES = 2**20
"""Least bytes of a copy that is stored in a file."""


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor in a file, and the pages of that file."""

    tensor: Tensor
    _pages: mmap.mmap | None = None

    @classmethod
    def zeros(cls, like: Tensor, folder: Path) -> "MappedTensor":
        """Zeros of another tensor's shape and dtype, in a file in this folder; empty tensors need no file.

        Raises:
            StorageError: the folder is not writable, or the disk is full.
        """
        size = like.numel() * like.element_size()
        if size == 0:
            return cls(torch.zeros_like(like, device="cpu"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # Space is reserved now: a disk that is full later would kill the process without an error message.
                reserve(file.fileno(), size)
                file.truncate(size)
                pages = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise storage_error(folder / "memory", error) from error
        return cls(torch.frombuffer(pages, dtype=like.dtype).view(like.shape), pages)

    @classmethod
    def copy(
        cls, tensor: Tensor, folder: Path, *, few_bytes: int | None = None, part_bytes: int = PART_BYTES
    ) -> "MappedTensor":
        """A copy in a file in this folder, or in memory if it has less than `few_bytes` (default: `FEW_BYTES`).

        Raises:
            StorageError: the folder is not writable, or the disk is full.
        """
        least = FEW_BYTES if few_bytes is None else few_bytes
        if tensor.ndim == 0 or tensor.numel() * tensor.element_size() < least:
            return cls(tensor.cpu().clone())
        copy = cls.zeros(tensor, folder)
        for part in parts(tensor, part_bytes=part_bytes):
            copy.tensor[part] = tensor[part]
            copy.release()
        return copy

    def copy_to(self, target: Tensor, *, part_bytes: int = PART_BYTES) -> None:
        """Copy the values into another tensor."""
        if target.ndim == 0:
            target.copy_(self.tensor)
            return
        for part in parts(target, part_bytes=part_bytes):
            target[part] = self.tensor[part].to(target.device)
            self.release()

    def release(self) -> None:
        """Release the pages that this process has touched; the values are kept."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


def parts(tensor: Tensor, whole: int = 1, *, part_bytes: int = PART_BYTES) -> Iterator[slice]:
    """Slices of the first dimension with about `part_bytes` each and whole groups of `whole` rows."""
    rows = max(1, part_bytes // max(1, tensor.element_size() * tensor[:1].numel() * whole)) * whole
    yield from (slice(start, start + rows) for start in range(0, len(tensor), rows))
