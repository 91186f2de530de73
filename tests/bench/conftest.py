"""Comparisons inside this process: their cells run one after another, without workers that import torch again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from crossdistill.bench import compare as comparing
from crossdistill.bench.pool import Message, Work, attempted
from crossdistill.data.av_digits import AvDigitsConfig


class Here:
    """A crew of one, in this process."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.begun: list[Any] = []

    def run(self, tasks: Sequence[Any], choose: Callable[[], int | None]) -> Iterator[Message]:
        """See `Crew`."""
        while (task := choose()) is not None:
            self.begun.append(tasks[task])
            heard: list[Message] = []
            last = attempted(
                self.work,
                tasks[task],
                lambda kind, value, task=task, heard=heard: heard.append(Message(0, task, kind, value)),
            )
            yield from heard
            yield Message(0, task, *last)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    """Crews that were asked for: each is of this process."""
    crews: list[Here] = []

    def crew(on: str, work: Work, jobs: int | None, most: int, out: Path) -> tuple[Here, int]:
        crews.append(Here(work))
        return crews[-1], 1

    monkeypatch.setattr(comparing, "crew", crew)
    return crews


@pytest.fixture(scope="session")
def digits(built_once: Callable[[str], AbstractContextManager[object]]) -> None:
    """The tiny av-digits are in the cache folder."""
    with built_once("av-digits"):
        AvDigitsConfig().tiny().load()
