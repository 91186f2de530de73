"""Training of one cell by a worker, on this machine or on another one that shares the folder."""

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
"""Sends a message of a kind with its value: "begin" (stage, steps), "advance" steps, "trained" stage."""

KEPT = 4
"""Number of data sets kept in memory; consecutive cells mostly use the same."""

_DATASETS: dict[str, Dataset] = {}


def loaded(config: DataConfig | Dataset, progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """The data set of a configuration, from memory if it was used recently; a data set itself is returned unchanged."""
    if isinstance(config, Dataset):
        return config
    key = config.model_dump_json()
    if key not in _DATASETS:
        while len(_DATASETS) >= KEPT:
            del _DATASETS[next(iter(_DATASETS))]
        _DATASETS[key] = config.load(progress)
    return _DATASETS[key]


def as_task(cell: Cell, out: Path, share: Path, split: str = "test") -> dict[str, Any]:
    """A cell as plain values for any process."""
    return {"cell": cell.as_data(), "out": str(out), "share": str(share), "split": split}


def train(task: dict[str, Any], send: Send) -> str:
    """Run one cell in one thread, resuming an earlier attempt; returns its accuracy as text."""
    torch.set_num_threads(1)
    cell, out = Cell.from_data(task["cell"]), Path(task["out"])
    recipe = cell.recipe()
    report = run(
        recipe,
        out,
        resume=True,
        share=Path(task["share"]),
        dataset=None if finished(out) else loaded(recipe.data),
        display=_Messages(send),
        split=task["split"],
        # A worker of an earlier, killed comparison may still be running this cell, here or on another machine.
        wait=True,
    )
    return f"{report.rows[-1].mean:.3f}"


class _Messages:
    """A display that sends its updates as messages."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._stage = ""
        self._pending = 0

    def begin(self, name: str, total: int) -> None:
        self._stage = name
        self._send("begin", (name, total))

    def advance(self, parts: int = 1) -> None:
        # A message for every tenth step is enough for a progress bar.
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
