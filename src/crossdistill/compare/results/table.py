"""The table of a comparison as data: a line for each method, a column for each student and label fraction."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from crossdistill.compare.budget import Pick
from crossdistill.compare.grid import Cell, Grid, Setting
from crossdistill.compare.results.collect import Collected
from crossdistill.compare.results.pairwise import PairwiseResults
from crossdistill.data.metric_names import LOWER_IS_BETTER
from crossdistill.report import Row

Mark = Literal["best", "second", ""]
State = Literal["done", "partly failed", "failed", "cannot apply"]
Column = tuple[str, float]
"""A student and a fraction of labels."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All results of a comparison, from which its tables and reports are made."""

    grid: Grid
    cells: tuple[Cell, ...]
    collected: Collected
    pairwise: PairwiseResults
    refused: Mapping[str, str]
    """Reasons of cells that cannot run, and of methods without a form for the requested teachers."""
    failed: Mapping[str, str]
    """Reasons of cells that started and failed."""
    about: str
    tuning: Sequence[Mapping[str, Any]] = ()
    pick: Pick | None = None
    split_moves: bool = False
    """Whether the seed also draws the split of the data, so that trials and cells use different splits."""

    @property
    def verdicts(self) -> PairwiseResults:
        """The old name of `pairwise`."""
        warnings.warn(
            "verdicts is called pairwise now; the old name will be removed in version 0.2", DeprecationWarning, 2
        )
        return self.pairwise


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the table: a method on one student at one fraction of labels."""

    row: Row | None
    state: State
    mark: Mark = ""
    fewer: int | None = None
    """Number of test rows of the accuracy, if it differs from that of the table."""


@dataclass(frozen=True, slots=True)
class Line:
    """One method with its teachers, a teacher alone, or chance."""

    method: str
    teachers: str | None
    kind: Literal["beside", "method", "control"]
    entries: Mapping[Column, Entry] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The method and its teachers."""
        return f"{self.method} ({self.teachers})" if self.teachers else self.method

    @property
    def seconds(self) -> float:
        """Seconds of the longest run."""
        return max((entry.row.seconds for entry in self.entries.values() if entry.row), default=0.0)

    @property
    def memory(self) -> float:
        """Largest memory peak of the runs, MB."""
        return max((entry.row.peak_memory_mb for entry in self.entries.values() if entry.row), default=0.0)


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The table of a comparison: its columns, and its lines with at most one entry for each column."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, findings: Findings) -> "ResultTable":
        """The table of these findings: chance and teachers first, then the methods, controls last."""
        cells = findings.cells
        settings = list(dict.fromkeys(cell.setting for cell in cells))
        columns = tuple(dict.fromkeys((s.student, s.labelled) for s in settings))
        states = {setting: _state(setting, findings) for setting in settings}
        rows = {_key(row): row for row in findings.collected.rows}
        lines = []
        beside = [row for row in findings.collected.rows if row.method == "chance" or row.method.startswith("teacher:")]
        for name in dict.fromkeys(row.method for row in beside):
            named = [row for row in beside if row.method == name]
            # Chance and teachers use all labels, and appear in every column of their student.
            entries = {c: Entry(row, "done") for row in named for c in columns if c[0] == row.student}
            lines.append(Line(name, None, "beside", entries))
        for control in (None, findings.grid.control):
            group = [s for s in settings if s.control == control]
            for method, teachers in dict.fromkeys((s.method, s.teachers) for s in group):
                line = [s for s in group if (s.method, s.teachers) == (method, teachers)]
                places = {(s.student, s.labelled): Entry(rows.get(_row_key(s)), states[s]) for s in line}
                title = f"{method}@{control}" if control else method
                lines.append(Line(title, teachers, "control" if control else "method", places))
            if findings.grid.control is None:
                break
        common = table_rows(findings)
        return cls(columns, tuple(_with_rows(line, common) for line in _marked(lines, columns)))

    def places(self, line: Line) -> tuple[int, int]:
        """The numbers of columns in which a line is best and second."""
        marks = [entry.mark for entry in line.entries.values()]
        return marks.count("best"), marks.count("second")


def falls(row: Row) -> bool:
    """Whether a lower value of a row's metric is better."""
    return row.metric.rpartition(" ")[2] in LOWER_IS_BETTER


def table_rows(findings: Findings) -> int:
    """The number of test rows with a target, over which most accuracies of the table are."""
    return max((row.test_rows for row in findings.collected.rows), default=0)


def _with_rows(line: Line, common: int) -> Line:
    """The line with `fewer` set for each entry whose number of test rows differs from the table's."""
    rows = {c: entry.row.test_rows for c, entry in line.entries.items() if entry.row is not None}
    fewer = {c: number for c, number in rows.items() if number != common}
    return replace(line, entries={c: replace(entry, fewer=fewer.get(c)) for c, entry in line.entries.items()})


def _key(row: Row) -> tuple[object, ...]:
    return row.method.partition("@")[0], row.teachers, row.student, row.labelled, row.control


def _row_key(setting: Setting) -> tuple[object, ...]:
    return setting.method, setting.teachers, setting.student, setting.labelled, setting.control


def _state(setting: Setting, findings: Findings) -> State:
    names = [cell.name for cell in findings.cells if cell.setting == setting]
    if all(name in findings.refused for name in names):
        return "cannot apply"
    missing = [name for name in names if name in findings.refused or name in findings.failed]
    return "done" if not missing else "failed" if len(missing) == len(names) else "partly failed"


def _marked(lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """The lines with the best and second mean of the methods marked in every column; equal means share a mark."""
    marks: dict[tuple[int, Column], Mark] = {}
    for column in columns:
        means = {
            i: entry.row.mean
            for i, line in enumerate(lines)
            if line.kind == "method" and (entry := line.entries.get(column)) is not None and entry.row is not None
        }
        fall = any(entry.row is not None and falls(entry.row) for line in lines for entry in line.entries.values())
        ranked = sorted(set(means.values()), reverse=not fall)
        for i, mean in means.items():
            if mean in ranked[:2] and len(means) > 1:
                marks[i, column] = "best" if mean == ranked[0] else "second"
    return [
        Line(
            line.method,
            line.teachers,
            line.kind,
            {c: replace(e, mark=marks.get((i, c), "")) for c, e in line.entries.items()},
        )
        for i, line in enumerate(lines)
    ]
