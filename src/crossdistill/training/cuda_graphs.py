"""Whole training steps as CUDA graphs: a small student's step is a hundred launches, and a graph is one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.errors import SettingError
from crossdistill.method import Progress

EAGER_STEPS = 3
"""Steps before the first capture, in which libraries choose their kernels and the optimizer makes its state."""

Move = Callable[[Batch, Progress], dict[str, Tensor]]
"""One optimizer step on a batch, and its numbers."""


@runtime_checkable
class Graphs(Protocol):
    """Whatever can record work and repeat it."""

    def aside(self) -> AbstractContextManager[None]:
        """Where work runs that is recorded later."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note what `work` would do, without doing it; gives what does it."""
        ...


class CudaGraphs:
    """CUDA's own, on the present device."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream of its own, as captures have: autograd remembers where it first saw a weight."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


class GraphedStep:
    """A step that is captured once for each epoch and then replayed on the same memory.

    Numbers that a method draws from the epoch (weights that decay) are constants of the graph, so each epoch has its
    own. Batches of another size than the first one run as they are.
    """

    def __init__(self, move: Move, graphs: Graphs) -> None:
        self._move = move
        self._graphs = graphs
        self._eager_left = EAGER_STEPS
        self._num_rows: int | None = None
        self._epoch: int | None = None
        self._static: Batch | None = None
        self._replay: Callable[[], None] | None = None
        self._logs: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """One step; its numbers are copies, which the next step does not touch.

        Raises:
            SettingError: the step cannot be captured; says why.
        """
        self._num_rows = self._num_rows or len(batch)
        if self._eager_left or len(batch) != self._num_rows:
            self._eager_left -= bool(self._eager_left)
            with self._graphs.aside():
                return self._move(batch, progress)
        if self._epoch != progress.epoch:
            self._record(batch, progress)
            self._epoch = progress.epoch
        else:
            assert self._static is not None
            _overwrite(self._static, batch)
        assert self._replay is not None
        self._replay()
        values = torch.stack([value.reshape(()) for value in self._logs.values()])
        return dict(zip(self._logs, values.unbind(), strict=True))

    def _record(self, batch: Batch, progress: Progress) -> None:
        # A new batch each time: sources may remember what they found for a batch, by the identity of its tensors.
        static = _copied(batch)

        def move() -> None:
            self._logs = self._move(static, progress)

        self._replay = None
        try:
            self._replay = self._graphs.record(move)
        except RuntimeError as error:
            raise SettingError(
                "cuda_graphs: the step cannot be captured, because it looks at a value on the host or its shapes "
                f"depend on one ({' '.join(str(error).split())[:300]}); set cuda_graphs to false"
            ) from error
        self._static = static


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            for part in value.values():
                add(part)

    for one in fields(batch):
        add(getattr(batch, one.name))
    return found


def _copied(batch: Batch) -> Batch:
    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        return {name: copy(part) for name, part in value.items()} if isinstance(value, Mapping) else value

    return replace(batch, **{one.name: copy(getattr(batch, one.name)) for one in fields(batch)})


def _overwrite(static: Batch, batch: Batch) -> None:
    for own, new in zip(_tensors(static), _tensors(batch), strict=True):
        own.copy_(new, non_blocking=True)
