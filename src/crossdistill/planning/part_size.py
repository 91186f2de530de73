"""How many rows of a pass without gradient go together: counted from what a few rows hold, so that it is repeatable."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crossdistill.batch import Batch

MOST_ROWS = 1024
"""Rows of one part, at most."""
FEW_ROWS = 16
"""Fewer rows than these cost more time than they save memory, unless they hold more than `FEW_BYTES`."""
FEW_BYTES = 2**28
PART_BYTES: Mapping[str, int] = MappingProxyType({"cpu": 2**24})
"""What a part holds at its peak, by the kind of device (`ELSEWHERE` for others). On a CPU more is slower, since layers
then hand their outputs on through main memory (benchmarks/part_size.py)."""
ELSEWHERE = 2**30


def rows_at_once(
    work: Callable[[Batch], object],
    batch: Callable[[int], Batch],
    rows: int,
    device: torch.device,
    *,
    compiled: bool = False,
) -> int:
    """How many of `rows` rows to give to `work` at a time, without gradient.

    `batch(n)` gives n of them on the device. Two small batches are run, and the bytes counted that `work` holds at its
    peak for each row more, with the inputs: a size depends on networks, shapes and the kind of device, never on time,
    so that a resumed run takes the same parts and ends in the same bits. No random state moves. `compiled` says that
    networks are run through torch.compile, which is left aside meanwhile.
    """
    few, more = min(2, rows), min(4, rows)
    if few == more:
        return max(1, rows)
    # Where a modality is absent nothing is run, and the first rows may lack it.
    first, second = (replace(batch(number), present={}) for number in (few, more))
    with _aside(device, compiled):
        work(first)  # what is traced and checked once
        row_bytes = max(1, (held_at_peak(work, second) - held_at_peak(work, first)) // (more - few))
    fitting = max(PART_BYTES.get(device.type, ELSEWHERE) // row_bytes, min(FEW_ROWS, FEW_BYTES // row_bytes))
    return max(1, min(MOST_ROWS, rows, fitting))


@contextmanager
def _aside(device: torch.device, compiled: bool) -> Iterator[None]:
    """Without gradient, random numbers and compilers of the run."""
    with (
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
    ):
        yield


def held_at_peak(work: Callable[[Batch], object], batch: Batch) -> int:
    """Most bytes of inputs and of what operations made that are there at one moment of `work(batch)`."""
    with _Held() as held:
        work(batch)
    inputs = [one for one in tree_leaves(dict(batch.inputs)) if isinstance(one, Tensor)]
    return int(held.peak) + sum(one.numel() * one.element_size() for one in inputs)


class _Held(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there, and the most of them at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._take(one.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size
