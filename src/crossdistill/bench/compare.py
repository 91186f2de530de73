"""Run a grid of cells that share whatever is equal, and put their results side by side."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from crossdistill.bench.grid import Cell, Grid
from crossdistill.bench.pool import Message, Pool
from crossdistill.bench.progress import GridProgress
from crossdistill.bench.table import comparison_markdown, comparison_table
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.display import Terminal
from crossdistill.errors import CrossdistillError, ResumeError, RunError
from crossdistill.plan import prepare
from crossdistill.report import RESULTS, Report, Row, merged
from crossdistill.runner import run
from crossdistill.storage import write_json, write_text


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished comparison: rows merged over seeds, and the cells that failed with their reasons."""

    out: Path
    rows: tuple[Row, ...]
    failed: dict[str, str]
    about: str

    def text(self) -> str:
        """The table as it is drawn on a terminal."""
        return comparison_table(self.rows, self.failed, self.about)


@dataclass
class _Board:
    """Which cells wait and run, so that no stage is trained twice at the same time."""

    keys: list[dict[str, int]]
    share: Path
    waiting: list[int]
    running: set[int] = field(default_factory=set)

    def choose(self) -> int | None:
        """The first cell none of whose missing stages is being trained for another cell now."""
        busy = {key for cell in self.running for key in self.keys[cell] if not self.there(key)}
        for cell in self.waiting:
            if not busy.intersection(self.keys[cell]):
                self.waiting.remove(cell)
                self.running.add(cell)
                return cell
        return None

    def there(self, key: str) -> bool:
        """Whether a stage's outcome lies in the shared folder."""
        return (self.share / key / "outcome.json").is_file()


def compare(grid: Grid, out: Path, *, jobs: int | None = None, resume: bool = False) -> Comparison:
    """Run every cell that is not done yet, with as many workers as `jobs` (by default one a core).

    Cells share a folder of stages: what two of them would train alike is trained once. A cell that fails is
    reported in its place, and does not stop the others.

    Raises:
        RunError: the folder holds a comparison, and `resume` was not asked for.
        ResumeError: it holds another comparison.
    """
    _claim(out, grid, resume)
    cells = grid.cells()
    with Terminal() as display:
        keys, failed, about = _survey(cells, display)
        waiting = [i for i in range(len(cells)) if i in keys and not (_folder(out, cells[i]) / RESULTS).is_file()]
        board = _Board([keys.get(i, {}) for i in range(len(cells))], out / "shared", waiting)
        workers = max(1, min(jobs or os.cpu_count() or 1, len(waiting)))
        display.say(f"{len(cells)} cells, {len(keys) - len(waiting)} done already, {workers} workers")
    tasks = [{"cell": cell.as_data(), "out": str(_folder(out, cell)), "share": str(board.share)} for cell in cells]
    steps = {key: count for i in waiting for key, count in board.keys[i].items() if not board.there(key)}
    with GridProgress(sum(steps.values()), len(waiting)) as progress:
        for message in Pool(_train, workers).run(tasks, board.choose):
            _follow(message, board, cells, failed, progress)
    rows = _collect(out, [cells[i] for i in range(len(cells)) if i in keys])
    comparison = Comparison(out, tuple(rows), failed, about)
    Report(out, comparison.rows).save()
    write_text(out / "report.md", comparison_markdown(comparison.rows, failed, about, grid))
    return comparison


def _follow(message: Message, board: _Board, cells: list[Cell], failed: dict[str, str], progress: GridProgress) -> None:
    name = cells[message.task].name
    if message.kind in {"done", "failed"}:
        board.running.discard(message.task)
        if message.kind == "failed":
            failed[name] = str(message.value)
        progress.over(message.worker, name, str(message.value), well=message.kind == "done")
    else:
        progress.heard(message.worker, name, message.kind, message.value)


def _claim(out: Path, grid: Grid, resume: bool) -> None:
    path = out / "grid.json"
    now = json.loads(grid.model_dump_json())
    if not path.is_file():
        write_json(path, now)
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    if not resume:
        raise RunError(f"{out} holds a comparison already; go on with --resume, or choose another folder with --out")
    changed = [f"  - {name}: was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise ResumeError(f"{out} holds another comparison; what differs:\n" + "\n".join(changed))


def _survey(cells: Sequence[Cell], display: Terminal) -> tuple[dict[int, dict[str, int]], dict[str, str], str]:
    """Build every cell's plan without training: its stages' keys with their steps, or why it cannot run."""
    keys: dict[int, dict[str, int]] = {}
    failed: dict[str, str] = {}
    about = ""
    display.begin("looking through the cells", len(cells))
    for number, cell in enumerate(cells):
        try:
            recipe = cell.recipe()
            assert isinstance(recipe.data, DataConfig)
            dataset = _load(recipe.data, display.data)
            plan = prepare(recipe, dataset, torch.device("cpu"))
        except CrossdistillError as error:
            failed[cell.name] = str(error)
        else:
            about = dataset.about
            keys[number] = {job.key: job.stage.epochs * job.order.steps for job in plan.jobs}
        display.advance()
    display.end(f"{len(keys)} can run" + (f", {len(failed)} cannot" if failed else ""))
    return keys, failed, about


_DATASETS: dict[str, Dataset] = {}


def _load(config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """A cell's data; the last few stay in memory, since cells that follow each other mostly use the same."""
    key = config.model_dump_json()
    if key not in _DATASETS:
        while len(_DATASETS) >= 4:
            del _DATASETS[next(iter(_DATASETS))]
        _DATASETS[key] = config.load(progress)
    return _DATASETS[key]


def _folder(out: Path, cell: Cell) -> Path:
    return out / "cells" / cell.name


class _Messages:
    """A display that sends what it is told to the parent."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        self._send = send
        self._pending = 0

    def begin(self, name: str, total: int) -> None:
        self._send("begin", (name, total))

    def advance(self, parts: int = 1) -> None:
        # Every step would be a message; one in ten is enough for a bar.
        self._pending += parts
        if self._pending >= 10:
            self._send("advance", self._pending)
            self._pending = 0

    def end(self, note: str = "") -> None:
        self._send("advance", self._pending)
        self._pending = 0

    def say(self, text: str) -> None:
        return

    def data(self, description: str, done: int, total: int) -> None:
        return


def _train(task: dict[str, Any], send: Callable[[str, Any], None]) -> str:
    """One cell, in a worker; gives its result in a few words."""
    cell = Cell(**{**task["cell"], "settings": tuple(task["cell"]["settings"])})
    recipe = cell.recipe()
    assert isinstance(recipe.data, DataConfig)
    report = run(
        recipe,
        Path(task["out"]),
        resume=True,
        share=Path(task["share"]),
        dataset=_load(recipe.data),
        display=_Messages(send),
    )
    return f"{report.rows[-1].mean:.3f}"


def _collect(out: Path, cells: Sequence[Cell]) -> list[Row]:
    """All cells' rows, merged over seeds: chance and teachers once for each student and seed, then the methods."""
    found: dict[tuple[object, ...], Row] = {}

    def add(row: Row, seed: int) -> None:
        found.setdefault((seed, row.method, row.teachers, row.student, row.labelled, row.control), row)

    for cell in cells:
        folder = _folder(out, cell)
        if not (folder / RESULTS).is_file():
            continue
        rows = Report.load(folder).rows
        # Teachers that trained together with the student are another thing than teachers alone.
        alone = any((folder / "stages").glob("*-supervised-*")) and cell.control is None
        for row in rows:
            if not row.method.startswith("teacher:") or (alone and "@" not in row.method):
                add(row, cell.seed)
        if cell.method == "supervised" and cell.labelled == 1.0:
            # A network that was trained alone is what teaches the students of other modalities.
            for other in sorted({other.student for other in cells} - {cell.student}):
                taught = replace(
                    rows[-1], method=f"teacher:{cell.student}", student=other, seconds=0.0, peak_memory_mb=0.0
                )
                add(taught, cell.seed)
    return merged([row for _, row in sorted(found.items(), key=lambda item: int(str(item[0][0])))])
