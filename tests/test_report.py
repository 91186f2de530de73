"""Rows of results: what is written comes back, seeds are merged, spread is that of a sample."""

import json
import math
import statistics
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from facts import raises

from crossdistill.errors import RunError
from crossdistill.report import Report, Row, merged, number, spread_of

ROW = Row(
    data="toy",
    method="kd",
    teachers="mm",
    student="image",
    labelled=0.05,
    control=None,
    metric="accuracy",
    mean=0.5,
    std=None,
    values=(0.5,),
    test_rows=100,
    seconds=2.0,
    peak_memory_mb=300.0,
)


def of(value: float, **changes: object) -> Row:
    return replace(ROW, mean=value, values=(value,), **changes)


def test_rows_have_the_fields_that_other_tools_rely_on() -> None:
    wanted = "data method teachers student labelled control metric mean std values test_rows seconds peak_memory_mb"
    wanted += " metrics"
    assert [field.name for field in fields(Row)] == wanted.split()


def test_a_report_comes_back_from_its_folder(tmp_path: Path) -> None:
    rows = (ROW, of(0.25, teachers=None, control="shuffled", method="kd@shuffled"))
    Report(tmp_path, rows).save()
    assert Report.load(tmp_path) == Report(tmp_path, rows)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert [row["values"] for row in plain] == [[0.5], [0.25]]
    kept = {name: value for name, value in asdict(ROW).items() if name != "metrics"}
    assert plain[0] == kept | {"values": [0.5]}


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    Report(tmp_path, (ROW,)).save()
    plain = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps([row | {"new": 1} for row in plain]))
    assert Report.load(tmp_path).rows == (ROW,)


def test_a_run_that_has_not_ended_says_so(tmp_path: Path) -> None:
    with raises(RunError, tmp_path):
        Report.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[", "{}x", '[{"data": "toy"}]', "[1]", '[{"values": 3}]', "3"])
def test_damaged_results_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with raises(RunError, "results.json"):
        Report.load(tmp_path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with raises(ValueError, "JSON"):
        Report(tmp_path, (of(math.nan),)).save()
    assert not (tmp_path / "results.json").exists()


def test_spread_is_that_of_a_sample() -> None:
    values = (0.61, 0.58, 0.64, 0.6)
    assert spread_of(values) == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert spread_of((0.0, 1.0)) == pytest.approx(math.sqrt(0.5))
    assert spread_of((0.5,)) is None
    assert spread_of(()) is None


def test_seeds_of_one_setting_become_one_row() -> None:
    rows = [
        of(0.5, seconds=1.0, peak_memory_mb=100.0),
        of(0.9, method="supervised", teachers=None),
        of(0.7, seconds=3.0, peak_memory_mb=500.0),
        of(0.6, seconds=2.0, peak_memory_mb=200.0),
    ]
    first, second = merged(rows)
    assert first.values == (0.5, 0.7, 0.6)
    assert first.mean == pytest.approx(0.6)
    assert first.std == pytest.approx(0.1)
    assert (first.seconds, first.peak_memory_mb) == (2.0, 500.0)
    assert (second.method, second.values, second.std) == ("supervised", (0.9,), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "other"},
        {"method": "supervised"},
        {"teachers": "cm"},
        {"student": "audio"},
        {"labelled": 1.0},
        {"control": "shuffled"},
        {"metric": "f1"},
    ],
)
def test_rows_that_differ_in_anything_stay_apart(changes: dict[str, object]) -> None:
    assert len(merged([ROW, of(0.5, **changes)])) == 2


def test_merging_again_changes_nothing() -> None:
    rows = merged([of(0.5), of(0.7), of(0.9, student="audio")])
    assert merged(rows) == rows


def test_tables_show_mean_and_spread() -> None:
    row = merged([of(0.5), of(0.7)])[0]
    assert number(row) == "0.600 ± 0.141"
    assert number(ROW) == "0.500"
    report = Report(Path("out"), (row, of(0.1, method="chance", teachers=None, labelled=1.0)))
    lines = report.markdown().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| toy | image | 5% | kd (mm) | 0.600 ± 0.141 |")
    assert lines[3].startswith("| toy | image | 100% | chance | 0.100 |")
    assert str(report) == report.markdown()
