"""Long-lived worker processes, which import torch once; a crash costs one task."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, runtime_checkable

from crossdistill.errors import CrossdistillError

Work = Callable[[Any, Callable[[str, Any], None]], Any]
"""The work for one task: called with the task and a function that sends messages, returns the result."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a worker. `kind` is "done", "failed" (with the reason as text), or a kind that the task defines."""

    worker: int
    task: int
    kind: str
    value: Any


@runtime_checkable
class Executor(Protocol):
    """Executes tasks on workers, here or on a cluster."""

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """Execute the tasks whose numbers `choose` returns (None: no task can start now), and yield their messages.

        Ends when no worker is busy and `choose` returns None. A task that fails, or kills its worker, is reported and
        does not stop the others.
        """
        ...


class Pool:
    """Worker processes on this machine, which end when this process ends.

    Workers are new processes, so `work` has to be importable by name, and tasks and results have to be plain values.
    """

    def __init__(self, work: Work, workers: int) -> None:
        self._work = work
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker | None] = [None] * workers

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """Execute the tasks that `choose` returns; see `Executor`."""
        try:
            while True:
                for slot in range(len(self._workers)):
                    worker = self._workers[slot]
                    if worker is None or worker.task is None:
                        task = choose()
                        if task is not None:
                            self._workers[slot] = self._begin(worker, task, tasks[task])
                busy = [worker for worker in self._workers if worker is not None and worker.task is not None]
                if not busy:
                    return
                yield from self._listen(busy)
        finally:
            self.close()

    def _begin(self, worker: "_Worker | None", task: int, value: Any) -> "_Worker":
        if worker is not None:
            try:
                worker.pipe.send(value)
            except OSError:
                # The worker died while it was idle, which costs no task.
                worker.process.join()
                worker.pipe.close()
                worker = None
        if worker is None:
            pipe, worker_pipe = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(self._work, worker_pipe), daemon=True)
            process.start()
            worker_pipe.close()
            worker = _Worker(process, pipe)
            worker.pipe.send(value)
        worker.task = task
        return worker

    def _listen(self, busy: list["_Worker"]) -> Iterator[Message]:
        for ready in wait([worker.pipe for worker in busy], timeout=0.5):
            worker = next(candidate for candidate in busy if candidate.pipe is ready)
            slot, task = self._workers.index(worker), worker.task
            assert task is not None
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                worker.pipe.close()
                kind, value = "failed", f"its worker process died: {_exit_reason(worker.process.exitcode)}"
                self._workers[slot] = None
            if kind in {"done", "failed"}:
                worker.task = None
            yield Message(slot, task, kind, value)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            if worker is not None:
                worker.process.terminate()
                worker.process.join()
                worker.pipe.close()
        self._workers = [None] * len(self._workers)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: int | None = None


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, possibly because memory ran out" if name == "SIGKILL" else name
    return f"exit status {code}"


def _serve(work: Work, pipe: Connection) -> None:
    """The main loop of a worker: executes tasks until the pipe closes."""
    # The parent handles the terminal's interrupt and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(attempted(work, task, lambda kind, value: pipe.send((kind, value))))


def _end_with_parent() -> None:
    """Exit when the parent has died, since its result is not needed and a resumed comparison needs the cores.

    The cell resumes from its last checkpoint; all files are written atomically.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def attempted(work: Work, task: Any, send: Callable[[str, Any], None]) -> tuple[str, Any]:
    """A task's last message: ("done", result) or ("failed", reason)."""
    try:
        return "done", work(task, send)
    except CrossdistillError as error:
        return "failed", str(error)
    except Exception:  # no error of one cell may stop the others
        return "failed", traceback.format_exc()
