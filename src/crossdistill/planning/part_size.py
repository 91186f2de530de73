"""The number of rows per part of a pass without gradient, computed from the memory of a few rows (repeatable)."""

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
"""Most rows of one part."""
FEW_ROWS = 16
"""Least rows of one part, unless they hold more than `FEW_BYTES`: smaller parts cost more time than memory saved."""
FEW_BYTES = 2**28
PART_BYTES: Mapping[str, int] = MappingProxyType({"cpu": 2**24})
"""Peak bytes of one part, by the kind of device (`ELSEWHERE` for others). Larger parts are slower on a CPU, since the
outputs of layers then leave the cache (benchmarks/part_size.py)."""
ELSEWHERE = 2**30


def rows_at_once(
    work: Callable[[Batch], object],
    batch: Callable[[int], Batch],
    rows: int,
    device: torch.device,
    *,
    compiled: bool = False,
) -> int:
    """The number of rows, out of `rows`, per call of `work` without gradient.

    `batch(n)` returns n rows on the device. Two small batches are run to count the peak bytes of `work` per additional
    row, inputs included. The size depends on networks, shapes and the kind of device but not on time, so that a resumed
    run uses the same parts and gives bit-identical results. Random state is restored. `compiled`: the networks are
    compiled by torch.compile, which is disabled here.
    """
    few, more = min(2, rows), min(4, rows)
    if few == more:
        return max(1, rows)
    # Rows without a modality are not run, and the first rows may lack one.
    first, second = (replace(batch(number), present={}) for number in (few, more))
    with _aside(device, compiled):
        work(first)  # runs one-time tracing and checks
        row_bytes = max(1, (held_at_peak(work, second) - held_at_peak(work, first)) // (more - few))
    fitting = max(PART_BYTES.get(device.type, ELSEWHERE) // row_bytes, min(FEW_ROWS, FEW_BYTES // row_bytes))
    return max(1, min(MOST_ROWS, rows, fitting))


@contextmanager
def _aside(device: torch.device, compiled: bool) -> Iterator[None]:
    """A context without gradient and compilation that restores the random state."""
    with (
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
    ):
        yield


def held_at_peak(work: Callable[[Batch], object], batch: Batch) -> int:
    """Peak bytes of the inputs and of the tensors made by operations during `work(batch)`."""
    with _Held() as held:
        work(batch)
    inputs = [leaf for leaf in tree_leaves(dict(batch.inputs)) if isinstance(leaf, Tensor)]
    return int(held.peak) + sum(tensor.numel() * tensor.element_size() for tensor in inputs)


class _Held(TorchDispatchMode):
    """Bytes of the live tensors that operations made, and their peak."""

    def __init__(self) -> None:
        # PyTorch leaves its `__init__` without annotations.
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._take(leaf.untyped_storage())
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
