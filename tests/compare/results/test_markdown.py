"""The table and its files from synthetic results."""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import warned

from crossdistill.compare.budget import Pick
from crossdistill.compare.grid import Cell, Grid
from crossdistill.compare.results.collect import Answers, Collected, Cost
from crossdistill.compare.results.csv_table import comma_separated
from crossdistill.compare.results.latex import latex
from crossdistill.compare.results.markdown import markdown, save
from crossdistill.compare.results.pairwise import compare_pairwise
from crossdistill.compare.results.table import Findings, ResultTable
from crossdistill.compare.results.terminal import terminal
from crossdistill.report import Report, Row, spread_of

MEANS = {
    ("supervised", None): (0.50, 0.52, 0.51),
    ("kd", "mm"): (0.60, 0.62, 0.61),
    ("kd", "cm"): (0.58, 0.60, 0.59),
    ("mst-distill", "mm+cm"): (0.60, 0.62, 0.61),
}
TRIALS = [
    {"values": {"temperature": 2}, "seeds": [1000], "validation_accuracy": [0.5]},
    {"values": {"temperature": 4}, "seeds": [1000], "validation_accuracy": [0.6]},
]
TUNING = [
    {
        "method": "kd", "student": "image", "teachers": "mm", "labelled": 1.0, "trials": TRIALS,
        "chosen": {"temperature": 4}, "settings": ["stages.kd.method.temperature=4"], "missing": [],
    },
    {
        "method": "supervised", "student": "image", "teachers": None, "labelled": 1.0,
        "trials": [{"values": {}, "seeds": [], "validation_accuracy": []}],
        "chosen": {}, "settings": [], "missing": ["temperature"],
    },
]  # fmt: skip


def row(cell: Cell, values: tuple[float, ...]) -> Row:
    return Row(
        data="av-digits",
        method=f"{cell.method}@{cell.control}" if cell.control else cell.method,
        teachers=cell.teachers,
        student=cell.student,
        labelled=cell.labelled,
        control=cell.control,
        metric="accuracy",
        mean=sum(values) / len(values),
        std=spread_of(values),
        values=values,
        test_rows=100,
        seconds=12.5 if cell.teachers else 4.0,
        peak_memory_mb=300.0,
    )


def beside(method: str, student: str, value: float) -> Row:
    return Row("av-digits", method, None, student, 1.0, None, "accuracy", value, 0.0, (value,) * 3, 100, 0.0, 0.0)


def findings(**changes: Any) -> Findings:
    grid = Grid.parse(
        "av-digits", methods="supervised,kd,mst-distill", teachers="mm,cm", labelled="1.0,0.05", control="shuffled"
    )
    cells = grid.cells()
    # Of kd (cm) on images one seed failed; mst-distill cannot apply to sounds.
    refused = {
        cell.name: "no layer & no_tap" for cell in cells if (cell.method, cell.student) == ("mst-distill", "audio")
    }
    lost = "kd-image-cm-1-seed2"
    rows, answers, costs = [beside("chance", s, 0.1) for s in ("image", "audio")], {}, {}
    rows.append(beside("teacher:mm", "image", 0.9))
    for cell in cells:
        if cell.seed or cell.name in refused:
            continue
        values = tuple(value - (0.2 if cell.control else 0.0) for value in MEANS[cell.method, cell.teachers])
        values = values[:2] if lost.startswith(cell.name.removesuffix("0")) else values
        rows.append(row(cell, values))
        answers[cell.setting] = {
            seed: Answers(np.arange(100), np.arange(100) < 100 * value) for seed, value in enumerate(values)
        }
        costs[cell.setting] = Cost(12.5, 300.0, 61_706, 1_000_000)
    collected = Collected(tuple(rows), answers, costs)
    made = Findings(
        grid, tuple(cells), collected, compare_pairwise(collected, lambda student, seed, ids: ids), refused,
        {lost: "Traceback\nits worker process died"}, "Digits.", TUNING, Pick(30.0, 3, 0.5, 900.0),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def results() -> Findings:
    return findings()


def test_old_names_of_the_pairwise_results_warn(results: Findings) -> None:
    with warned(DeprecationWarning, "pairwise"):
        assert results.verdicts is results.pairwise
    pair = results.pairwise.pairs[0]
    with warned(DeprecationWarning, "difference"):
        assert pair.found is pair.difference


def test_best_and_second_are_marked_in_every_column_and_equals_share(results: Findings) -> None:
    table = ResultTable.of(results)
    marks = {line.title: {c: e.mark for c, e in line.entries.items()} for line in table.lines if line.kind == "method"}
    assert marks["kd (mm)"]["image", 1.0] == marks["mst-distill (mm+cm)"]["image", 1.0] == "best"
    assert (marks["kd (cm)"]["audio", 1.0], marks["supervised"]["image", 1.0]) == ("second", "")
    assert marks["kd (mm)"]["audio", 0.05] == "best"
    # Chance, teachers and controls get no marks.
    assert not [line.title for line in table.lines if line.kind != "method" and any(table.places(line))]
    assert table.places(next(line for line in table.lines if line.title == "kd (mm)")) == (4, 0)


def test_lines_are_chance_and_teachers_then_methods_then_controls(results: Findings) -> None:
    table = ResultTable.of(results)
    assert [line.title for line in table.lines] == [
        "chance", "teacher:mm", "supervised", "kd (mm)", "kd (cm)", "mst-distill (mm+cm)",
        "kd@shuffled (mm)", "kd@shuffled (cm)", "mst-distill@shuffled (mm+cm)",
    ]  # fmt: skip
    assert table.columns == (("image", 1.0), ("image", 0.05), ("audio", 1.0), ("audio", 0.05))


def test_inapplicable_and_failed_cells_are_distinguished(results: Findings) -> None:
    states = {
        (line.title, column): entry.state
        for line in ResultTable.of(results).lines
        for column, entry in line.entries.items()
    }
    assert states["mst-distill (mm+cm)", ("audio", 1.0)] == "cannot apply"
    assert (states["kd (cm)", ("image", 1.0)], states["kd (mm)", ("image", 1.0)]) == ("partly failed", "done")
    everything = {cell.name: "x" for cell in results.cells if cell.setting.title == "kd (cm)"}
    rows = tuple(r for r in results.collected.rows if (r.method, r.teachers) != ("kd", "cm"))
    lost = replace(results, failed=everything, collected=replace(results.collected, rows=rows))
    line = next(line for line in ResultTable.of(lost).lines if line.title == "kd (cm)")
    assert {entry.state for entry in line.entries.values()} == {"failed"}
    assert "failed" in terminal(lost)


def test_the_terminal_shows_everything(results: Findings) -> None:
    text = terminal(results)
    assert re.search(r"kd +mm +0\.610 ± 0\.010 ¹", text)
    assert re.search(r"kd +cm +0\.590 ± 0\.014 † ²", text)
    assert re.search(r"mst-distill +mm\+cm .* cannot apply", text)
    assert "cannot apply: mst-distill-audio-mmcm-1-seed0: no layer & no_tap" in text
    assert "failed: kd-image-cm-1-seed2: Traceback" in text
    assert "100 test rows, 3 seeds. Picked for a budget of 30 minutes" in text
    assert "image, 100% of the labels, against the student alone: better: " in text
    assert "Control kd@shuffled (mm), image, 5% of the labels: -0.100" in text


def test_a_wide_table_is_drawn_student_by_student(results: Findings) -> None:
    labelled = ("1.0", "0.5", "0.1", "0.05")
    grid = Grid.parse("av-digits", methods="supervised", labelled=",".join(labelled))
    wide = replace(results, grid=grid, cells=tuple(grid.cells()))
    heads = [line.split() for line in terminal(wide).splitlines() if line.endswith("memory")]
    assert heads == [["image"] * 4 + ["memory"], ["audio"] * 4 + ["memory"]]


def test_the_page_has_the_table_the_comparisons_and_the_reasons(results: Findings) -> None:
    text = markdown(results)
    assert "| kd | mm | **0.610 ± 0.010** |" in text
    assert "| *0.590 ± 0.010* |" in text
    assert "† some of its seeds failed" in text
    assert "| image | 100% | kd (mm) | supervised | +0.100 [" in text
    assert "- kd (mm), image, 100% of the labels: temperature = 4 (in 2 trials)." in text
    assert "- supervised, image, 100% of the labels: nothing to tune; it has no temperature, skipped." in text
    assert "- `kd-image-cm-1-seed2`: Traceback its worker process died" in text
    assert "The seed also draws the data's split" not in text
    assert "The seed also draws the data's split" in markdown(replace(results, split_moves=True))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_reading_the_csv_gives_the_same_numbers(results: Findings) -> None:
    lines = list(csv.DictReader(io.StringIO(comma_separated(results))))
    rows = {(r.method, r.teachers, r.student, r.labelled): r for r in results.collected.rows if r.seconds}
    read = {
        (line["method"], line["teachers"] or None, line["student"], float(line["labelled"])): line
        for line in lines
        if line["mean"] and line["parameters"]
    }
    assert set(read) == set(rows)
    for key, line in read.items():
        assert float(line["mean"]) == rows[key].mean
        assert float(line["std"]) == rows[key].std
        assert tuple(map(float, line["values"].split())) == rows[key].values
        assert int(line["parameters"]) == 61_706
    pair = next(p for p in results.pairwise.pairs if p.setting.title == "kd (mm)" and p.setting.labelled == 1.0)
    line = read["kd", "mm", "image", 1.0]
    assert float(line["alone_difference"]) == pair.difference.value
    assert (line["alone_verdict"], line["mark"], line["kd_difference"]) == ("better", "best", "")
    refused = next(line for line in lines if line["state"] == "cannot apply")
    assert refused["mean"] == refused["values"] == ""


def _balanced(text: str) -> bool:
    depth = 0
    for letter in re.sub(r"\\[\\{}]", "", text):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return depth == 0


def test_the_latex_is_one_tabular_with_equal_columns(results: Findings) -> None:
    text = latex(results)
    assert _balanced(text)
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [("begin", "tabular"), ("end", "tabular")]
    match = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    columns = len(match.group(1))
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(ResultTable.of(results).lines)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}
    # Characters of comments and mathematics are escaped everywhere else.
    body = "".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%#_]", body)
    assert body.count("$") % 2 == 0
    assert r"\textbf{0.610} $\pm$ 0.010" in text
    assert r"\underline{0.590} $\pm$ 0.014$^\dagger$" in text
    assert r"\textit{cannot apply}" in text


def test_special_characters_of_latex_are_escaped(results: Findings) -> None:
    odd = tuple(
        replace(row, method="teacher:a_b%c") if row.method == "teacher:mm" else row for row in results.collected.rows
    )
    assert r"teacher:a\_b\%c" in latex(replace(results, collected=replace(results.collected, rows=odd)))


def test_all_files_are_written_and_results_are_rows_as_of_every_run(results: Findings, tmp_path: Path) -> None:
    save(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison.json", "report.md", "results.json", "table.csv", "table.tex",
    ]  # fmt: skip
    assert Report.load(tmp_path).rows == results.collected.rows
    plain = json.loads((tmp_path / "results.json").read_text())
    assert set(plain[0]) == {
        "data", "method", "teachers", "student", "labelled", "control", "metric", "mean", "std", "values", "test_rows",
        "seconds", "peak_memory_mb",
    }  # fmt: skip
    comparison: Mapping[str, Any] = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["cannot_apply"] == dict(results.refused)
    assert comparison["failed"] == dict(results.failed)
    assert comparison["budget"] == {"minutes": 30.0, "seeds": 3, "epochs": 0.5, "projected_s": 900.0}
    assert comparison["tuning"] == TUNING
    pair = next(p for p in comparison["pairs"] if (p["method"], p["against"]["method"]) == ("mst-distill", "kd"))
    assert (pair["against"], pair["verdict"]) == ({"method": "kd", "teachers": "mm"}, "not distinguishable")
    assert (pair["wins"], pair["ties"], pair["losses"]) == (0, 3, 0)
    best = {(place["method"], place["teachers"]): (place["best"], place["of"]) for place in comparison["places"]}
    assert best["kd", "mm"] == (4, 4)
    assert {cost["trained"] for cost in comparison["costs"]} == {1_000_000}
    assert len(comparison["controls"]) == 5
