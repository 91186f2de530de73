"""What a worker does with one cell, wherever it runs: on this machine, or on another one that shares the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crossdistill.compare.grid import Cell
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.report import finished
from crossdistill.training.runner import run

Send = Callable[[str, Any], None]
"""Takes a message's kind and value: "begin" (stage, steps), "advance" steps, "trained" stage."""

KEPT = 4
"""Data sets in memory: cells that follow each other mostly use the same."""

_DATASETS: dict[str, Dataset] = {}


def loaded(config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """A cell's data, from memory where they were used before."""
    key = config.model_dump_json()
    if key not in _DATASETS:
        while len(_DATASETS) >= KEPT:
            del _DATASETS[next(iter(_DATASETS))]
        _DATASETS[key] = config.load(progress)
    return _DATASETS[key]


def as_task(cell: Cell, out: Path, share: Path, split: str = "test") -> dict[str, Any]:
    """A cell as plain values that any process can be given."""
    return {"cell": cell.as_data(), "out": str(out), "share": str(share), "split": split}


def train(task: dict[str, Any], send: Send) -> str:
    """Run one cell in one thread, going on where an earlier try stopped; gives its result in a few words."""
    torch.set_num_threads(1)
    cell, out = Cell.from_data(task["cell"]), Path(task["out"])
    recipe = cell.recipe()
    assert isinstance(recipe.data, DataConfig)
    report = run(
        recipe,
        out,
        resume=True,
        share=Path(task["share"]),
        dataset=None if finished(out) else loaded(recipe.data),
        display=_Messages(send),
        split=task["split"],
        # A worker of an earlier, killed comparison may still be at it, here or on another machine.
        wait=True,
    )
    return f"{report.rows[-1].mean:.3f}"


class _Messages:
    """A display that sends its calls as messages."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._stage = ""
        self._pending = 0

    def begin(self, name: str, total: int) -> None:
        self._stage = name
        self._send("begin", (name, total))

    def advance(self, parts: int = 1) -> None:
        # Every step would be a message; one in ten is enough for a bar.
        self._pending += parts
        if self._pending >= 10:
            self._flush()

    def status(self, text: str) -> None:
        return

    def end(self, note: str = "") -> None:
        self._flush()
        self._send("trained", self._stage)

    def say(self, text: str) -> None:
        return

    def data(self, description: str, done: int, total: int) -> None:
        return

    def _flush(self) -> None:
        if self._pending:
            self._send("advance", self._pending)
            self._pending = 0
