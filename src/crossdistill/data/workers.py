"""Worker processes that read the rows of row sources ahead of the steps that need them."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from crossdistill import errors
from crossdistill.batch import Batch, Input
from crossdistill.data.row_source import RowSource, named_row, said
from crossdistill.errors import CrossdistillError, DataError

AHEAD = 2
"""Requests that each worker reads ahead."""
MOST_WORKERS = 8
"""Most workers that are chosen by default."""
DEAD_WORKER = (RuntimeError, ConnectionError, EOFError)
"""What waiting for a worker that died raises: PyTorch's own error, or that of the connection that it left open."""
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux."""

_slot: NDArray[np.int64] | None = None
"""In a worker: the numbers of the request, the source and the row being read, in memory that the main process sees."""
_pools: "weakref.WeakSet[_Pool]" = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Request:
    """One batch to read: the arguments of `Dataset.batch`."""

    rows: Tensor
    total_rows: int | None = None
    only: Collection[str] | None = None
    view: Tensor | None = None
    others: int = 0
    """So many of the rows, the last ones, are those that the others are mixed with."""


Ready = Mapping[str, Input]
Assemble = Callable[[Request, Ready | None], Batch]
"""The batch of a request, from the inputs that workers have read; without them, it is read in this process."""
Read = Callable[[str, Tensor, Tensor | None], Input]
"""The input of some rows in their views, from the name of a modality."""


def reading(row: int) -> None:
    """Note the row that a source reads now, so that the death of a worker names it."""
    if _slot is not None:
        _slot[2] = row


def end_workers() -> None:
    """End the worker processes of all data sets; the next pass starts new ones."""
    for pool in list(_pools):
        pool.end()


@dataclass
class Workers:
    """The worker processes of one data set and of its variants; they live until the end of a run.

    `wanted` is their number (0: rows are read in this process); None chooses one per core, 8 at most, and none in a
    process that may not have children, such as a cell of a comparison.
    """

    wanted: int | None = None
    _pool: "_Pool | None" = field(default=None, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Workers":
        return Workers(self.wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (self.wanted,)

    @property
    def count(self) -> int:
        """The number of processes."""
        if multiprocessing.current_process().daemon:
            return 0
        if self.wanted is not None:
            return self.wanted
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(MOST_WORKERS, cores // ranks))

    def note(self, names: Collection[str]) -> str:
        """A line that says who reads the rows of these modalities."""
        if not names:
            return ""
        count = self.count
        who = f"{count} worker process{'es' if count > 1 else ''}" if count else "this process"
        return f"rows of {', '.join(names)} are read by {who}, when a step needs them (data.workers)"

    def batches(
        self,
        requests: Iterable[Request],
        sources: Mapping[str, RowSource],
        read: Read,
        assemble: Assemble,
        where: str,
        pinned: bool = False,
    ) -> Iterator[Batch]:
        """The batches of some requests, in their order; without sources or workers, each is read when it is taken.

        Raises:
            DataError: a row cannot be read, or a worker died; names the row.
        """
        count = self.count if sources else 0
        if count:
            requests = iter(requests)
            first = next(requests, None)
            requests = requests if first is None else chain([first], requests)
            # An earlier pass has read these rows: most likely all of this one. Others are right, only slower.
            if first is None or all(_quick(source, first.rows) for source in sources.values()):
                count = 0
        if not count:
            return (assemble(request, None) for request in requests)
        key = (count, pinned, *((name, id(source)) for name, source in sources.items()))
        if self._pool is None or self._pool.key != key or not self._pool.usable():
            if self._pool is not None:
                self._pool.end()
            self._pool = _Pool(key, count, dict(sources), read, where, pinned)
        return self._pool.batches(requests, assemble)


def _quick(source: RowSource, rows: Tensor) -> bool:
    quick = getattr(source, "quick", None)
    return callable(quick) and bool(quick(rows))


class _Reading(Dataset[Any]):
    """What a worker runs: the inputs of a request, or the error."""

    def __init__(self, names: Collection[str], read: Read) -> None:
        self._names, self._read = tuple(names), read

    def __getitem__(self, request: tuple[int, Request]) -> tuple[int, Ready | None, tuple[str, str] | None]:
        number, wanted = request
        inputs: dict[str, Input] = {}
        try:
            for place, name in enumerate(self._names):
                if wanted.only is None or name in wanted.only:
                    if _slot is not None:
                        _slot[0], _slot[1], _slot[2] = number, place, -1
                    inputs[name] = self._read(name, wanted.rows, wanted.view)
            return number, inputs, None
        except CrossdistillError as error:
            return number, None, (type(error).__name__, str(error))
        except MemoryError as error:
            return number, None, ("DataError", f"a data worker: {said(error)}")


class _Queue(Sampler[Any]):
    """The requests of the current pass, which the loader takes as it reads ahead."""

    def __init__(self) -> None:
        self.requests: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)


class _Pool:
    """A DataLoader with persistent workers; a new pass takes it over from one that has not finished."""

    def __init__(
        self, key: Any, count: int, sources: Mapping[str, RowSource], read: Read, where: str, pinned: bool
    ) -> None:
        self.key, self.ended, self._thread = key, False, threading.current_thread()
        self._sources, self._where = sources, where
        self._queue, self._pass = _Queue(), 0
        self._slots = torch.full((count, 3), -1, dtype=torch.int64).share_memory_()
        self._loader: DataLoader[Any] = DataLoader(
            _Reading(sources, read),
            sampler=self._queue,
            batch_size=None,
            collate_fn=_as_read,
            num_workers=count,
            prefetch_factor=AHEAD,
            persistent_workers=True,
            pin_memory=pinned,
            worker_init_fn=_Begin(self._slots, os.getpid()),
            # A forked worker shares the memory of the sources, and needs no copy of a program's own classes.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # Its own generator: a new pass must not draw from the generator of dropout and masks.
            generator=torch.Generator().manual_seed(0),
        )
        self._passes: Any = None
        _pools.add(self)

    def batches(self, requests: Iterable[Request], assemble: Assemble) -> Iterator[Batch]:
        """The batches of one pass."""
        self._pass += 1
        mine, waiting = self._pass, deque[tuple[int, Request]]()
        rest = iter(requests)

        def numbered() -> Iterator[tuple[int, Request]]:
            for number, request in enumerate(rest):
                waiting.append((number, request))
                yield number, request

        self._queue.requests = numbered()
        try:
            passes = self._begun()
        except DEAD_WORKER as error:
            raise self._died((), error) from error
        while mine == self._pass and not self.ended:
            try:
                _, ready, fault = next(passes)
            except StopIteration:
                return
            except DEAD_WORKER as error:
                raise self._died(waiting, error) from error
            _, request = waiting.popleft()
            if fault is not None:
                self.end()
                raise _error(*fault)
            yield assemble(request, ready)
        # Another pass has taken the workers over: this one goes on in this process.
        yield from (assemble(request, None) for request in [*(waited for _, waited in waiting), *rest])

    def usable(self) -> bool:
        """Whether the processes live; they end with the thread that started them."""
        known = getattr(self._passes, "_workers", [])
        return not self.ended and self._thread.is_alive() and all(worker.is_alive() for worker in known)

    def _begun(self) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(fork|suggested max number of worker).*")
            self._passes = iter(self._loader)
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and not isinstance(handler, _WithoutOwnWorkers):
                signal.signal(signal.SIGCHLD, _WithoutOwnWorkers(handler))
        found: Iterator[Any] = self._passes
        return found

    def lost_a_worker(self) -> bool:
        """Whether one of the processes has ended by itself."""
        return any(worker.exitcode is not None for worker in getattr(self._passes, "_workers", []))

    def _died(self, waiting: Iterable[tuple[int, Request]], error: Exception) -> Exception:
        """The error for a worker that ended: how, and the row that it was reading."""
        if not isinstance(error, RuntimeError):
            # The connection closes a moment before the process has ended.
            wait([worker.sentinel for worker in getattr(self._passes, "_workers", [])], timeout=1)
        codes = [worker.exitcode for worker in getattr(self._passes, "_workers", [])]
        dead = next((place for place, code in enumerate(codes) if code is not None), None)
        if dead is None:
            return error
        number, place, row = self._slots[dead].tolist()
        at = ""
        for rows in (request.rows.tolist() for numbered, request in waiting if numbered == number):
            name, source = list(self._sources.items())[place]
            first, more = (row, "") if row >= 0 else (rows[0], f" and {len(rows) - 1} more rows of its batch")
            at = f" while it read {name!r} of {named_row(source, first)}{more}"
        self.end()
        return DataError(
            f"{self._where}: a data worker was ended by {_ending(codes[dead])}{at}; look at what it read, or lower "
            "data.workers or the batch size"
        )

    def end(self) -> None:
        """End the processes."""
        self.ended = True
        self._loader._iterator = None
        if self._passes is not None:
            # Of a worker that died before, PyTorch's signal handler raises here, after the rest has been ended.
            with suppress(RuntimeError):
                self._passes._shutdown_workers()
        self._passes = None


@dataclass
class _WithoutOwnWorkers:
    """PyTorch's handler of SIGCHLD, silent about the workers of a pool.

    Where a worker died, that handler raises in whatever the process does at that moment, such as a step, where the
    error looks like a fault of a network. The pool notices the dead worker itself when it waits for the next batch,
    and names the row. Workers of a program's own loaders still raise.
    """

    handler: Callable[[int, FrameType | None], Any]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError:
            if not any(pool.lost_a_worker() for pool in list(_pools)):
                raise


@dataclass
class _Begin:
    """What a worker does first."""

    slots: Tensor
    parent: int

    def __call__(self, worker: int) -> None:
        global _slot
        # As numpy, whose assignment takes a twentieth of torch's time.
        _slot = self.slots[worker].numpy()
        # Ctrl-C ends the run by a checkpoint, for which the main process still needs its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "linux":
            # A killed run takes its workers along at once: they hold its lock of the run's folder too.
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != self.parent:
                os._exit(1)


def _as_read(value: Any) -> Any:
    return value


def _error(kind: str, text: str) -> CrossdistillError:
    made: CrossdistillError = getattr(errors, kind, DataError)(text)
    return made


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    why = {"SIGKILL": ", possibly because memory ran out", "SIGBUS": ", possibly because /dev/shm is full"}
    return name + why.get(name, "")
