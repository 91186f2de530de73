"""Progress display of a grid: all steps with the remaining time, and the current stage of each worker."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0
"""Without a terminal, seconds between two lines about the whole grid."""


class GridProgress:
    """Progress bars if standard error is a terminal, otherwise lines."""

    def __init__(self, steps: int, cells: int, title: str = "cells") -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = sys.stderr.isatty()
        self._steps, self._cells, self._name = steps, cells, title
        self._running: set[str] = set()
        self._done_steps = self._done_cells = self._failed = 0
        self._began = self._printed = time.monotonic()
        self._workers: dict[int, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._all = self._bars.add_task(self._title(), total=max(1, steps))

    def __enter__(self) -> "GridProgress":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def show(self, worker: int, cell: str, kind: str, value: Any) -> None:
        """Show a message of a worker: a stage began, steps were done, or a machine was lost."""
        if cell not in self._running:
            self._running.add(cell)
            self._bars.update(self._all, description=self._title())
        if kind == "begin":
            name, total = value
            self._row(worker, f"  {cell}: {name}", max(1, total))
        elif kind == "advance":
            self._done_steps += value
            self._bars.advance(self._all, value)
            self._bars.advance(self._row(worker), value)
            self._line()
        elif kind == "lost":
            self._console.print(f"{cell}: {value}; the cell is tried once more", markup=False, highlight=False)

    def ended(self, worker: int, cell: str, note: str, *, succeeded: bool) -> None:
        """Show that a cell has ended."""
        self._done_cells += succeeded
        self._failed += not succeeded
        self._running.discard(cell)
        if worker in self._workers:
            self._bars.remove_task(self._workers.pop(worker))
        self._bars.update(self._all, description=self._title())
        last = note.strip().splitlines()[-1] if note.strip() else "no reason given"
        text = f"{cell}: {note}" if succeeded else f"{cell}: FAILED: {last}"
        self._console.print(f"[{self._done_cells + self._failed}/{self._cells}] {text}", markup=False, highlight=False)

    def _title(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._name}: {self._done_cells} of {self._cells} done, {len(self._running)} running{failed}"

    def _row(self, worker: int, description: str | None = None, total: int | None = None) -> TaskID:
        if worker not in self._workers:
            self._workers[worker] = self._bars.add_task(description or "", total=total)
        elif description is not None:
            self._bars.reset(self._workers[worker], total=total, description=description)
        return self._workers[worker]

    def _line(self) -> None:
        now = time.monotonic()
        if self._live or now - self._printed < LINE_EVERY_S or not self._done_steps:
            return
        self._printed = now
        # Filling banks takes a few more steps than planned, so the share is limited to 1.
        share = min(1.0, self._done_steps / max(1, self._steps))
        left = (now - self._began) * (1 / share - 1)
        self._console.print(f"{self._title()}, {share:.0%} of all steps, about {left:.0f} s left", highlight=False)
