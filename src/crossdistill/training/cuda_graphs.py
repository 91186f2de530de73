"""Whole training steps as CUDA graphs: one launch replaces about a hundred launches of a small student's step."""

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
"""Steps before the first capture, in which libraries select kernels and the optimizer allocates its state."""

StepFunction = Callable[[Batch, Progress], dict[str, Tensor]]
"""One optimizer step on a batch; returns the values to log."""


@runtime_checkable
class Graphs(Protocol):
    """Captures the device work of a function and replays it."""

    def aside(self) -> AbstractContextManager[None]:
        """The context for steps before the capture."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work of a function without executing it; returns a function that replays it."""
        ...


class CudaGraphs:
    """CUDA graphs on the current device."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A side stream, as captures need: autograd keeps the stream on which it first used a weight."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work as a `torch.cuda.CUDAGraph`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


class GraphedStep:
    """A step that is captured once in each epoch and then replayed on the same memory.

    Values that a method derives from the epoch (decaying weights) are constants of the graph, so each epoch needs its
    own capture. Batches of another size than the first one run without a graph.
    """

    def __init__(self, step: StepFunction, graphs: Graphs) -> None:
        self._step = step
        self._graphs = graphs
        self._eager_left = EAGER_STEPS
        self._num_rows: int | None = None
        self._epoch: int | None = None
        self._static: Batch | None = None
        self._replay: Callable[[], None] | None = None
        self._logs: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """One step; the returned values are copies that the next step does not overwrite.

        Raises:
            SettingError: the step cannot be captured; states the reason.
        """
        self._num_rows = self._num_rows or len(batch)
        if self._eager_left or len(batch) != self._num_rows:
            self._eager_left -= bool(self._eager_left)
            with self._graphs.aside():
                return self._step(batch, progress)
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
        # A new copy in each epoch: sources cache their outputs by the identity of a batch's tensors.
        static = _copied(batch)

        def step() -> None:
            self._logs = self._step(static, progress)

        self._replay = None
        try:
            self._replay = self._graphs.record(step)
        except RuntimeError as error:
            raise SettingError(
                "cuda_graphs: the step cannot be captured, because it reads a value on the host or its shapes "
                f"depend on one ({' '.join(str(error).split())[:300]}); set cuda_graphs to false"
            ) from error
        self._static = static


def _tensors(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, Mapping):
            for part in value.values():
                add(part)

    for field in fields(batch):
        add(getattr(batch, field.name))
    return tensors


def _copied(batch: Batch) -> Batch:
    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        return {name: copy(part) for name, part in value.items()} if isinstance(value, Mapping) else value

    return replace(batch, **{field.name: copy(getattr(batch, field.name)) for field in fields(batch)})


def _overwrite(static: Batch, batch: Batch) -> None:
    for target, source in zip(_tensors(static), _tensors(batch), strict=True):
        target.copy_(source, non_blocking=True)
