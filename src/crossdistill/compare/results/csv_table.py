"""The table of a comparison as CSV, one line for each entry."""

import csv
import io
from dataclasses import asdict
from typing import Any

from crossdistill.compare.results.pairwise import ALONE, KD
from crossdistill.compare.results.table import Entry, Findings, Line, ResultTable
from crossdistill.runtime.escaping import csv_cell

FIELDS = (
    "data", "method", "teachers", "student", "labelled", "control", "metric", "mean", "std", "values", "test_rows",
    "seconds", "peak_memory_mb", "parameters", "trained", "state", "mark",
)  # fmt: skip
AGAINST = ("difference", "low", "high", "p", "p_holm", "verdict")


def comma_separated(findings: Findings) -> str:
    """One line for each entry of the table: the row as in `results.json`, costs, marks, and both comparisons.

    Numbers are written with all their digits, so that reading restores them; `values` are separated by spaces.
    """
    table = ResultTable.of(findings)
    fields = [*FIELDS, *(f"{name}_{what}" for name in ("alone", "kd") for what in AGAINST)]
    entries = [entry for line in table.lines for entry in line.entries.values()]
    # The mean of every further metric of the runs, under its name.
    fields += dict.fromkeys(other.metric for entry in entries if entry.row is not None for other in entry.row.metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for line in table.lines:
        for (student, labelled), entry in line.entries.items():
            writer.writerow(
                _as_text(
                    {"data": findings.grid.data, "method": line.method, "teachers": line.teachers, "student": student}
                    | {"labelled": labelled, "state": entry.state, "mark": entry.mark}
                    | _row(entry)
                    | _statistics(findings, line, student, labelled)
                )
            )
    return text.getvalue()


def _as_text(cells: dict[str, Any]) -> dict[str, Any]:
    """Escape text cells, so that no name is read as a formula; `values` holds numbers and is not escaped."""
    return {
        field: csv_cell(value) if isinstance(value, str) and field != "values" else value
        for field, value in cells.items()
    }


def _row(entry: Entry) -> dict[str, Any]:
    if entry.row is None:
        return {}
    fields = asdict(entry.row)
    del fields["labelled"], fields["metrics"]
    return (
        fields
        | {other.metric: other.mean for other in entry.row.metrics}
        | {"values": " ".join(map(repr, entry.row.values))}
    )


def _statistics(findings: Findings, line: Line, student: str, labelled: float) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for setting, cost in findings.collected.costs.items():
        same = (setting.title, setting.student, setting.labelled) == (line.title, student, labelled)
        if not same:
            continue
        fields |= {"parameters": cost.parameters, "trained": cost.trained}
        for name, method in (("alone", ALONE), ("kd", KD)):
            pair = findings.pairwise.of(setting, method)
            if pair is not None:
                plain = pair.as_data()
                fields |= {f"{name}_{what}": plain[what] for what in AGAINST}
    return fields
