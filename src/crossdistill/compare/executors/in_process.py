"""Tasks one after another in this process, for objects of the running program, which no other process can build."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from crossdistill.compare.executors.local import Message, Work, attempted


class InProcess:
    """An executor with one worker: this process."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """Execute the tasks that `choose` returns; the messages of a task follow together, at its end."""
        threads = torch.get_num_threads()
        try:
            while (task := choose()) is not None:
                messages: list[tuple[str, Any]] = []
                messages.append(attempted(self._work, tasks[task], _appending(messages)))
                for kind, value in messages:
                    yield Message(0, task, kind, value)
        finally:
            torch.set_num_threads(threads)


def _appending(messages: list[tuple[str, Any]]) -> Callable[[str, Any], None]:
    return lambda kind, value: messages.append((kind, value))
