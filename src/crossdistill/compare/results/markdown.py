"""Output files of a comparison: a report in Markdown, the table as CSV and LaTeX, the statistics as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossdistill.compare.grid import percent
from crossdistill.compare.results.csv_table import comma_separated
from crossdistill.compare.results.latex import latex
from crossdistill.compare.results.pairwise import PairedDifference
from crossdistill.compare.results.summary import (
    control_sentences,
    interval,
    notes,
    pairwise_sentences,
    tuning_sentences,
)
from crossdistill.compare.results.table import Entry, Findings, ResultTable, falls
from crossdistill.compare.results.terminal import costs, on_rows
from crossdistill.report import Report, number
from crossdistill.runtime.escaping import markdown as escape
from crossdistill.runtime.files import write_json, write_text

COMPARISON, PAGE, CSV, LATEX = "comparison.json", "report.md", "table.csv", "table.tex"


def save(findings: Findings, out: Path) -> None:
    """Write `results.json` (the rows, as for a run), `comparison.json`, `report.md`, and the table as CSV and LaTeX."""
    Report(out, findings.collected.rows).save()
    write_json(out / COMPARISON, as_data(findings))
    write_text(out / PAGE, markdown(findings))
    write_text(out / CSV, comma_separated(findings))
    write_text(out / LATEX, latex(findings))


def as_data(findings: Findings) -> dict[str, Any]:
    """The content of `comparison.json`: comparisons, costs, tuned choices, and cells without a result."""
    table = ResultTable.of(findings)
    places = [(line, *table.places(line)) for line in table.lines if line.kind == "method"]
    return {
        **findings.pairwise.as_data(),
        "places": [
            {"method": line.method, "teachers": line.teachers, "best": best, "second": second, "of": len(line.entries)}
            for line, best, second in places
        ],
        "costs": [{**asdict(setting), **asdict(cost)} for setting, cost in findings.collected.costs.items()],
        "tuning": [dict(choice) for choice in findings.tuning],
        "budget": findings.pick.as_data() if findings.pick is not None else None,
        "cannot_apply": dict(findings.refused),
        "failed": dict(findings.failed),
    }


def markdown(findings: Findings) -> str:
    """The report as Markdown."""
    table = ResultTable.of(findings)
    parts = [f"# {escape(findings.grid.data)}: methods side by side", findings.about, _reading(findings), _table(table)]
    others = _other_metrics(table)
    if others:
        parts.append("## Other metrics\n\n" + others)
    conclusions = [*pairwise_sentences(findings), *control_sentences(findings)]
    if conclusions:
        parts.append("## Conclusions\n\n" + _items(map(escape, conclusions)))
    if findings.pairwise.pairs:
        parts.append("## Paired comparisons\n\n" + _pairs(findings.pairwise.pairs))
    parts.append("## Cost\n\n" + _costs(findings, table))
    if findings.tuning:
        how = (
            "Every setting had the same number of trials, on seeds that no cell of the table uses. The values with the "
            "best validation accuracy are used; the test split is not read."
        )
        if findings.split_moves:
            how += " The seed also draws the data's split, so validation rows of a trial can be test rows of a cell."
        parts.append(f"## Tuning\n\n{how}\n\n" + _items(map(escape, tuning_sentences(findings))))
    for title, cells in (("Cannot apply", findings.refused), ("Failed", findings.failed)):
        if cells:
            reasons = [f"`{name}`: {escape(_line(why))}" for name, why in cells.items()]
            parts.append(f"## {title}\n\n" + _items(reasons))
    return "\n\n".join(parts) + "\n"


def _reading(findings: Findings) -> str:
    return (
        f"{_main(findings)}, mean ± standard deviation (ddof 1): {notes(findings)} **Best** and *second* of the "
        "methods are marked in each column. Models are selected on the validation split only. Differences are paired "
        "and have 95 % "
        "intervals from a hierarchical bootstrap over seeds and test samples (test rows with the same student input "
        "are one sample); p is corrected by Holm's method over all comparisons on one student at one fraction of "
        "labels. Seconds are the mean training time of a run with all stages that it needs (teachers included), as if "
        "it shared none. Memory is the largest peak of any of its runs, including banks and test; a shared stage has "
        "the peak of its training. In rows named `@shuffled` the teachers predict training rows other than those of "
        "the student."
    )


def _main(findings: Findings) -> str:
    """The name of the table's metric, with a capital."""
    name = next((row.metric for row in findings.collected.rows), "accuracy")
    better = "; lower is better" if any(map(falls, findings.collected.rows)) else ""
    return f"{name[:1].upper()}{name[1:]}{better}"


def _table(table: ResultTable) -> str:
    head = [
        "method",
        "teachers",
        *(f"{escape(student)}, {percent(labelled)} labels" for student, labelled in table.columns),
    ]
    lines = [
        [
            escape(line.method),
            escape(line.teachers or ""),
            *(_marked(line.entries.get(column)) for column in table.columns),
        ]
        for line in table.lines
    ]
    text = _grid(head, lines, left=2)
    partly = any(entry.state == "partly failed" for line in table.lines for entry in line.entries.values())
    return text + ("\n\n† some of its seeds failed and are not in the mean." if partly else "")


def _other_metrics(table: ResultTable) -> str:
    """The means of all metrics besides the main one; empty where there are none."""
    rows = [
        (line, column, entry.row)
        for line in table.lines
        for column, entry in line.entries.items()
        if entry.row is not None
    ]
    names = list(dict.fromkeys(other.metric for *_, row in rows for other in row.metrics))
    lines = [
        [escape(line.method), escape(line.teachers or ""), escape(student), percent(labelled)]
        + ["" if (one := row.measured(name)) is None else number(one) for name in names]
        for line, (student, labelled), row in rows
    ]
    return _grid(["method", "teachers", "student", "labels", *names], lines, left=4) if names else ""


def _marked(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry.row is None:
        return entry.state
    text = number(entry.row) + on_rows(entry) + (" †" if entry.state == "partly failed" else "")
    return {"best": f"**{text}**", "second": f"*{text}*", "": text}[entry.mark]


def _pairs(pairs: Sequence[PairedDifference]) -> str:
    head = ["student", "labels", "method", "against", "difference", "p (Holm)", "verdict", "seeds won"]
    lines = [
        [
            escape(pair.setting.student),
            percent(pair.setting.labelled),
            escape(pair.setting.title),
            escape(pair.against.title),
            interval(pair),
            f"{pair.p_holm:.4f}",
            pair.verdict,
            f"{pair.wins} of {len(pair.seeds)}",
        ]
        for pair in pairs
    ]
    return _grid(head, lines, left=4)


def _costs(findings: Findings, table: ResultTable) -> str:
    head = [
        "method",
        "teachers",
        "seconds",
        "memory MB",
        "student's parameters",
        "parameters trained",
        "best",
        "second",
    ]
    lines = []
    for line in table.lines:
        line_costs = [
            cost
            for setting, cost in findings.collected.costs.items()
            if (setting.title, setting.teachers) == (line.title, line.teachers)
        ]
        if line_costs:
            best, second = table.places(line)
            students = ", ".join(f"{size:,}" for size in dict.fromkeys(cost.parameters for cost in line_costs))
            trained = ", ".join(f"{size:,}" for size in dict.fromkeys(cost.trained for cost in line_costs))
            won = [f"{best} of {len(line.entries)}", f"{second}"] if line.kind == "method" else ["", ""]
            lines.append([escape(line.method), escape(line.teachers or ""), *costs(line), students, trained, *won])
    return _grid(head, lines, left=2)


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = "".join("---|" if i < left else "--:|" for i in range(len(head)))
    rows = [f"| {' | '.join(head)} |", f"|{rule}", *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join(rows)


def _items(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _line(text: str) -> str:
    return " ".join(text.split())
