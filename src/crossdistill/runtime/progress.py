"""Progress display of a run: bars with remaining time on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from crossdistill.runtime.escaping import visible


@runtime_checkable
class Display(Protocol):
    """Shows the progress of long work."""

    def begin(self, name: str, total: int) -> None:
        """Start a task of `total` parts."""
        ...

    def advance(self, parts: int = 1) -> None:
        """Count `parts` more parts as done."""
        ...

    def status(self, text: str) -> None:
        """Set the text beside the bar: epoch, loss, metrics, rows per second."""
        ...

    def end(self, note: str = "") -> None:
        """End the task."""
        ...

    def say(self, text: str) -> None:
        """Show one line permanently."""
        ...

    def data(self, description: str, done: int, total: int) -> None:
        """Show the progress of reading data: a description, the items done, and the total."""
        ...


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 row", "2 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def attended() -> bool:
    """Whether standard error is a terminal, or the program runs in a notebook."""
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Quiet:
    """A display that shows nothing."""

    def begin(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self, parts: int = 1) -> None:
        """Nothing."""

    def status(self, text: str) -> None:
        """Nothing."""

    def end(self, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def data(self, description: str, done: int, total: int) -> None:
        """Nothing."""


class Terminal:
    """Bars on a terminal (standard error) and in notebooks; elsewhere a line for each start and end of a task."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, soft_wrap=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._name = ""
        self._reading: str | None = None

    def __enter__(self) -> "Terminal":
        """Start drawing."""
        if attended():
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=self.console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        if self._bars is not None:
            self._bars.stop()

    def begin(self, name: str, total: int) -> None:
        """Add a bar, or print a line."""
        self._name = name = visible(name)
        if self._bars is not None:
            self._task = self._bars.add_task(name, total=total, status="")
        else:
            self.console.print(f"{name} ...", markup=False, highlight=False)

    def advance(self, parts: int = 1) -> None:
        """Move the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, parts)

    def status(self, text: str) -> None:
        """Set the text beside the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, status=text)

    def end(self, note: str = "") -> None:
        """Remove the bar and print a line."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self.say(f"{self._name}: {note}" if note else f"{self._name}: done")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(visible(text, lines=True), markup=False, highlight=False)

    def data(self, description: str, done: int, total: int) -> None:
        """Show the progress of reading data: a description, the items done, and the total."""
        if self._reading != description:
            self._reading = description
            self.begin(description, total)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
        if done >= total:
            self._reading = None
            self.end()
