"""The table of a comparison for a terminal."""

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossdistill.compare.grid import percent
from crossdistill.compare.results.summary import control_sentences, notes, pairwise_sentences
from crossdistill.compare.results.table import Column, Entry, Findings, Line, ResultTable
from crossdistill.report import number
from crossdistill.runtime.escaping import visible
from crossdistill.runtime.progress import counted

MARKS = {"best": " ¹", "second": " ²", "": "  "}
FITTING = 6
"""Largest number of columns in one table; with more columns, each student has its own table."""


def terminal(findings: Findings) -> str:
    """The table, the conclusions in sentences, and the cells that could not run."""
    table = ResultTable.of(findings)
    out = StringIO()
    console = Console(file=out, width=max(120, 70 + 22 * FITTING))
    students = list(dict.fromkeys(student for student, _ in table.columns))
    for group in [students] if len(table.columns) <= FITTING else [[student] for student in students]:
        console.print(_table(table, [column for column in table.columns if column[0] in group]))
        console.print()
    metric = next((row.metric for row in findings.collected.rows), "accuracy")
    of = "" if metric == "accuracy" else f" of {metric}"
    lines = [f"¹ best, ² second of the methods; mean ± standard deviation{of} over seeds. " + notes(findings)]
    lines += ["memory: the largest peak of any run of a method, banks and test included; shared stages as when trained"]
    lines += [*pairwise_sentences(findings), *control_sentences(findings)]
    lines += [f"cannot apply: {name}: {why}" for name, why in findings.refused.items()]
    lines += [f"failed: {name}: {why.strip()}" for name, why in findings.failed.items()]
    for line in (*lines, findings.about):
        console.print(visible(line, lines=True), markup=False, highlight=False, soft_wrap=True)
    return out.getvalue()


def _table(table: ResultTable, columns: list[Column]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2), header_style="")
    grid.add_column("method", no_wrap=True)
    grid.add_column("teachers", no_wrap=True)
    for student, labelled in columns:
        grid.add_column(Text(f"{visible(student)}\n{percent(labelled)} labels"), justify="right", no_wrap=True)
    grid.add_column("seconds", justify="right", no_wrap=True)
    grid.add_column("memory\nMB", justify="right", no_wrap=True)
    for line in table.lines:
        if any(column in line.entries for column in columns):
            values = [drawn(line.entries.get(column)) for column in columns]
            # As Text, so that square brackets are not read as a style.
            cells = (line.method, line.teachers or "", *values, *costs(line))
            grid.add_row(*(Text(visible(cell)) for cell in cells))
    return grid


def drawn(entry: Entry | None) -> str:
    """One entry as text: the number with its mark, or the reason for its absence."""
    if entry is None:
        return ""
    if entry.row is None:
        return f"{entry.state}  "
    partly = " †" if entry.state == "partly failed" else ""
    return f"{number(entry.row)}{on_rows(entry)}{partly}{MARKS[entry.mark]}"


def on_rows(entry: Entry) -> str:
    """The number of test rows of an accuracy as text; empty if it is that of the table."""
    return "" if entry.fewer is None else f" ({counted(entry.fewer, 'row')})"


def costs(line: Line) -> tuple[str, str]:
    """Seconds and memory as text; empty if nothing was trained."""
    return (f"{line.seconds:.1f}" if line.seconds else "", f"{line.memory:.0f}" if line.memory else "")
