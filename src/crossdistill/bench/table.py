"""The table of a comparison: methods down, students and label fractions across."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.table import Table

from crossdistill.report import Row, number


@runtime_checkable
class Described(Protocol):
    """What a page has to know of the grid that was run."""

    @property
    def data(self) -> str:
        """Name of the data."""
        ...

    @property
    def seeds(self) -> int:
        """Runs of each cell."""
        ...

    def text(self) -> str:
        """Its cells."""
        ...


def comparison_table(rows: Sequence[Row], failed: Mapping[str, str], about: str) -> str:
    """For a terminal: one block for each student."""
    columns = _columns(rows)
    out = StringIO()
    console = Console(file=out, width=120)
    for student in _students(rows):
        table = Table(title=f"student: {student}", title_justify="left", box=None, pad_edge=False, padding=(0, 2))
        table.add_column("method")
        for labelled in columns:
            table.add_column(f"{labelled:.0%} labels", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("memory MB", justify="right")
        for line in _lines(rows, student, columns):
            table.add_row(*line)
        console.print(table)
        console.print()
    _say_failed(console, failed)
    console.print(about, soft_wrap=True)
    return out.getvalue()


def comparison_markdown(rows: Sequence[Row], failed: Mapping[str, str], about: str, grid: Described) -> str:
    """The same as a page."""
    columns = _columns(rows)
    labels = " | ".join(f"{labelled:.0%} labels" for labelled in columns)
    parts = [f"# {grid.data}: methods side by side", about, _reading(rows, grid.seeds)]
    for student in _students(rows):
        head = f"| method | {labels} | seconds | memory MB |\n|---|{'--:|' * len(columns)}--:|--:|"
        body = "\n".join(f"| {' | '.join(line)} |" for line in _lines(rows, student, columns))
        parts.append(f"## Student: {student}\n\n{head}\n{body}")
    if failed:
        parts.append("## Cells that failed\n\n" + "\n".join(f"- `{name}`: {why}" for name, why in failed.items()))
    return "\n\n".join(parts) + "\n"


def _reading(rows: Sequence[Row], seeds: int) -> str:
    tested = max((row.test_rows for row in rows), default=0)
    return (
        f"Accuracy on {tested:,} test rows, mean ± standard deviation (ddof 1) over {seeds} seeds. Model selection saw "
        "the validation split only. Seconds are the mean training time of a run with all that it needs (teachers "
        "included), as if it shared nothing; memory is the largest peak of a process. In rows named `@shuffled` the "
        "teachers looked at other training rows while they taught: what is left there is not knowledge of the pair."
    )


def _students(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.student for row in rows))


def _columns(rows: Sequence[Row]) -> list[float]:
    return sorted({row.labelled for row in rows}, reverse=True)


def _lines(rows: Sequence[Row], student: str, columns: Sequence[float]) -> list[list[str]]:
    own = [row for row in rows if row.student == student]

    def rank(row: Row) -> int:
        return 0 if row.method == "chance" else 1 if row.method.startswith("teacher:") else 3 if row.control else 2

    names = dict.fromkeys((row.method, row.teachers) for row in sorted(own, key=rank))
    lines = []
    for method, teachers in names:
        cells = {row.labelled: row for row in own if (row.method, row.teachers) == (method, teachers)}
        several = sum(other == method for other, _ in names) > 1
        title = f"{method} ({teachers})" if several else method
        values = [number(cells[labelled]) if labelled in cells else "" for labelled in columns]
        seconds = max(row.seconds for row in cells.values())
        memory = max(row.peak_memory_mb for row in cells.values())
        lines.append([title, *values, f"{seconds:.1f}" if seconds else "", f"{memory:.0f}" if memory else ""])
    return lines


def _say_failed(console: Console, failed: Mapping[str, str]) -> None:
    for name, why in failed.items():
        console.print(f"failed: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
