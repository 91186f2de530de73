"""Workers on other machines that share the comparison's folder: the common part of Ray and Slurm."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from crossdistill.compare.executors.local import Message, Work, attempted
from crossdistill.compare.executors.messages import Inbox, Outbox

POLL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: "done" or "failed" with its value, or "lost" with its machine and the reason."""

    kind: str
    value: Any


@runtime_checkable
class Cluster(Protocol):
    """Runs jobs on other machines."""

    def submit(self, job: "ClusterJob") -> Any:
        """Queue a job; returns its handle for `ended`."""
        ...

    def ended(self, handle: Any) -> Ended | None:
        """The result of a job; None while it waits or runs."""
        ...

    def close(self) -> None:
        """Cancel all running jobs and close the connection."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """One attempt at one task; callable on any machine with the package and access to the folder."""

    work: Work
    task: Any
    messages: str
    """The file to which the job writes its progress."""

    def __call__(self) -> tuple[str, Any]:
        """Execute the task as a worker of a local pool does."""
        return attempted(self.work, self.task, Outbox(Path(self.messages)))


@dataclass
class _Running:
    task: int
    handle: Any
    inbox: Inbox


class Remote:
    """Executes tasks on a cluster, at most `workers` at a time. A task whose machine was lost is repeated once.

    The second attempt resumes from the checkpoint of the first; a lock separates the two if the first still runs.
    """

    def __init__(
        self,
        work: Work,
        cluster: Cluster,
        workers: int,
        messages: Path,
        *,
        tries: int = 2,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._work, self._cluster, self._messages, self._tries = work, cluster, messages, tries
        self._poll_every_s = poll_every_s
        self._slots: list[_Running | None] = [None] * workers
        self._tried: dict[int, int] = {}

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """Execute the tasks that `choose` returns; see `Executor`."""
        try:
            while True:
                for slot, running in enumerate(self._slots):
                    task = choose() if running is None else None
                    if task is not None:
                        self._slots[slot] = self._begin(task, tasks[task])
                if not any(self._slots):
                    return
                for slot, running in enumerate(self._slots):
                    if running is not None:
                        yield from self._listen(slot, running, tasks)
                time.sleep(self._poll_every_s)
        finally:
            self._cluster.close()

    def _begin(self, task: int, value: Any) -> _Running:
        self._tried[task] = self._tried.get(task, 0) + 1
        path = self._messages / f"{task}-{time.time_ns()}.jsonl"
        return _Running(task, self._cluster.submit(ClusterJob(self._work, value, str(path))), Inbox(path))

    def _listen(self, slot: int, running: _Running, tasks: Sequence[Any]) -> Iterator[Message]:
        ended = self._cluster.ended(running.handle)
        for kind, value in running.inbox.read():
            yield Message(slot, running.task, kind, value)
        if ended is None:
            return
        if ended.kind == "lost" and self._tried[running.task] < self._tries:
            self._slots[slot] = self._begin(running.task, tasks[running.task])
            yield Message(slot, running.task, "lost", ended.value)
            return
        self._slots[slot] = None
        yield Message(slot, running.task, "failed" if ended.kind == "lost" else ended.kind, ended.value)
