"""The first pass over a map-style dataset: a hash of each row, the lengths and the targets, read by workers."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossdistill.data.content import OnProgress
from crossdistill.data.item_rows import Column, ItemRows, Items, as_value, decoded, parts_of, unequal
from crossdistill.data.rendering import Sound
from crossdistill.data.row_source import named_row, said
from crossdistill.data.workers import Workers
from crossdistill.errors import CrossdistillError, DataError, ShapeError

ROWS_AT_ONCE = 32
"""Rows that a worker reads at once."""


@dataclass(frozen=True)
class Found:
    """What the first pass over a dataset found: a digest and the lengths of each row's columns, and the targets."""

    digests: Mapping[str, UInt8[np.ndarray, "N 16"]]
    lengths: Mapping[str, Int64[Tensor, " N"]]
    targets: list[Any] | None


class _Scan(Dataset[Any]):
    """Digests, lengths and targets of some rows, computed by a worker."""

    def __init__(self, items: Items, sources: Mapping[str, ItemRows], target: Column | None) -> None:
        self.items, self.sources, self.target = items, sources, target
        self.there = {
            name: set(source.there.tolist()) for name, source in sources.items() if len(source.there) < len(items)
        }

    def __len__(self) -> int:
        return -(-len(self.items) // ROWS_AT_ONCE)

    def __getitem__(self, part: int) -> Any:
        start = part * ROWS_AT_ONCE
        digests: dict[str, list[bytes]] = {name: [] for name in self.sources}
        lengths: dict[str, list[int]] = {name: [] for name, source in self.sources.items() if source.length}
        targets: list[Any] = []
        for row in range(start, min(start + ROWS_AT_ONCE, len(self.items))):
            try:
                self._add(row, digests, lengths, targets)
            except Exception as error:
                source = next(iter(self.sources.values()))
                text = str(error) if isinstance(error, CrossdistillError) else said(error)
                return f"{named_row(source, row)} cannot be read: {text}"
        return {name: b"".join(parts) for name, parts in digests.items()}, lengths, targets

    def _add(
        self, row: int, digests: Mapping[str, list[bytes]], lengths: Mapping[str, list[int]], targets: Any
    ) -> None:
        index = torch.tensor([row])
        for name, source in self.sources.items():
            if row not in self.there.get(name, (row,)):
                digests[name].append(bytes(16))
                if name in lengths:
                    lengths[name].append(0)
                continue
            if source.rendering is not None:
                (value,) = source.items.values(index, source.column)
                parts = _raw(decoded(value, source.rendering))
            elif source.length is not None:
                (value,) = source.items.values(index, source.column)
                tensor = as_value(value, f"row {row}")
                lengths[name].append(len(tensor))
                parts = {"": tensor[None]}
            else:
                read = source.fetch(index)
                parts = parts_of(read)
                if "" in parts and tuple(parts[""].shape[1:]) != tuple(source.spec.shape):
                    first = torch.empty(source.spec.shape)
                    raise ShapeError(f"{name!r}: {unequal([first, parts[''][0]], [0, row])}")
            digest = hashlib.blake2b(digest_size=16)
            for part in sorted(parts):
                value = parts[part]
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise DataError(f"{name!r} holds NaN or Inf; mend or drop it, or mark it absent with `present`")
                digest.update(f"{part} {value.dtype} {tuple(value.shape[1:])};".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            digests[name].append(digest.digest())
        if self.target is not None:
            (value,) = self.items.values(index, self.target)
            targets.append(value.item() if isinstance(value, Tensor | np.generic) and not value.ndim else value)


def _raw(value: Any) -> dict[str, Tensor]:
    """A decoded value as tensors, before its rendering."""
    if isinstance(value, str):
        return {"": torch.frombuffer(bytearray(value.encode() or b" "), dtype=torch.uint8)[None]}
    if isinstance(value, Sound):
        return {"": value.wave[None], "rate": torch.tensor([value.rate])}
    return {"": value[None]}


def scanned(
    name: str,
    items: Items,
    sources: Mapping[str, ItemRows],
    target: Column | None,
    workers: Workers,
    progress: OnProgress,
) -> Found:
    """One pass over all rows by workers.

    Raises:
        DataError: a row cannot be read; names it.
    """
    scan = _Scan(items, sources, target)
    digests: dict[str, list[bytes]] = {modality: [] for modality in sources}
    lengths: dict[str, list[int]] = {modality: [] for modality, source in sources.items() if source.length}
    targets: list[Any] = []
    # Few rows are read before a worker would have started.
    count = workers.count if len(items) > 8 * ROWS_AT_ONCE else 0
    loader: Any = DataLoader(
        scan,
        batch_size=None,
        collate_fn=_as_read,
        num_workers=count,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork" if count and sys.platform == "linux" else None,
    )
    for number, part in enumerate(loader):
        if isinstance(part, str):
            raise DataError(f"dataset {name!r}: {part}")
        for modality in sources:
            digests[modality].append(part[0][modality])
        for modality in lengths:
            lengths[modality] += part[1][modality]
        targets += part[2]
        progress(f"reading {name}", min((number + 1) * ROWS_AT_ONCE, len(items)), len(items))
    return Found(
        {modality: np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 16) for modality, parts in digests.items()},
        {modality: torch.tensor(values, dtype=torch.int64) for modality, values in lengths.items()},
        targets if target is not None else None,
    )


def _as_read(value: Any) -> Any:
    return value
