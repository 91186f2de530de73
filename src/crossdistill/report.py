"""What a run, a comparison or the demo ends in: rows of results, as JSON and as a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from crossdistill.errors import RunError
from crossdistill.escaping import markdown
from crossdistill.storage import write_json

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results: a method on a student, over as many seeds as there are values.

    `mean` and `std` (ddof 1; None for a single value) are of `values`, one for each seed. `seconds` is the mean
    training time of a run, `peak_memory_mb` the largest.
    """

    data: str
    method: str
    teachers: str | None
    student: str
    labelled: float
    control: str | None
    metric: str
    mean: float
    std: float | None
    values: tuple[float, ...]
    test_rows: int
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run folder."""

    out: Path
    rows: tuple[Row, ...]

    def save(self) -> None:
        """Write `results.json`, atomically."""
        write_json(self.out / RESULTS, [asdict(row) for row in self.rows])

    @classmethod
    def load(cls, out: Path) -> "Report":
        """Read a finished run's results.

        Raises:
            RunError: there are none, or they are damaged.
        """
        path = out / RESULTS
        if not path.is_file():
            raise RunError(f"{out} holds no finished run: {RESULTS} is not there; finish it with --resume")
        names = {field.name for field in fields(Row)}
        try:
            plain: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            known = [{k: v for k, v in row.items() if k in names} for row in plain]
            rows = [Row(**row | {"values": tuple(row["values"])}) for row in known]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        return cls(out, tuple(rows))

    def __str__(self) -> str:
        """The table: what `print(run(...))` shows."""
        return self.markdown()

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        head = "| data | student | labels | method | accuracy | seconds | memory MB |\n|---|---|--:|---|--:|--:|--:|"
        return "\n".join([head, *(_line(row) for row in self.rows)]) + "\n"


def merged(rows: Sequence[Row]) -> list[Row]:
    """Rows of several seeds as one row for each setting, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.data, row.method, row.teachers, row.student, row.labelled, row.control, row.metric)
        groups.setdefault(key, []).append(row)
    found = []
    for group in groups.values():
        first = group[0]
        values = tuple(value for row in group for value in row.values)
        found.append(
            replace(
                first,
                values=values,
                mean=sum(values) / len(values),
                std=spread_of(values),
                seconds=sum(row.seconds for row in group) / len(group),
                peak_memory_mb=max(row.peak_memory_mb for row in group),
            )
        )
    return found


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def number(row: Row) -> str:
    """Mean and spread as people write them."""
    return f"{row.mean:.3f}" if row.std is None else f"{row.mean:.3f} ± {row.std:.3f}"


def _line(row: Row) -> str:
    method = markdown(f"{row.method} ({row.teachers})" if row.teachers else row.method)
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    memory = f"{row.peak_memory_mb:.0f}" if row.peak_memory_mb else ""
    return (
        f"| {markdown(row.data)} | {markdown(row.student)} | {row.labelled:.0%} | {method} | {number(row)} "
        f"| {seconds} | {memory} |"
    )
