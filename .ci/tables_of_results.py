"""Tables of measured results, from the files that `crossdistill compare` and `make bench` write."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results.json"
AGAINST = {"alone": "the student alone", "kd": "KD"}


def _lines(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], right: range) -> str:
    rule = "|" + "".join("--:|" if place in right else "---|" for place in range(len(head)))
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"| {' | '.join(head)} |", rule, *lines]) + "\n"


def _labels(line: dict[str, str]) -> str:
    return f"{float(line['labelled']):.0%} labels"


def accuracy(name: str) -> str:
    """Methods down, students and fractions of labels across: `docs/results/NAME.csv`, which is a table.csv."""
    lines = _lines(name)
    columns = list(dict.fromkeys((line["student"], _labels(line)) for line in lines))
    rows: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for line in lines:
        method = (
            f"{line['method']}@{line['control']}" if line["control"] and "@" not in line["method"] else line["method"]
        )
        text = f"{float(line['mean']):.3f} ± {float(line['std']):.3f}" if line["mean"] else line["state"]
        marked = {"best": f"**{text}**", "second": f"*{text}*"}.get(line["mark"], text)
        rows.setdefault((method, line["teachers"]), {})[line["student"], _labels(line)] = marked
    cells = [[*row, *(found.get(column, "") for column in columns)] for row, found in rows.items()]
    return _grid(["method", "teachers", *map(", ".join, columns)], cells, range(2, 2 + len(columns)))


def differences(name: str) -> str:
    """Each method against the student alone and against KD, paired: what is distinguishable; the others are counted."""
    rows, same = [], 0
    for line in _lines(name):
        for column, title in AGAINST.items():
            if line[f"{column}_verdict"] == "not distinguishable":
                same += 1
            elif line[f"{column}_verdict"]:
                value, low, high = (float(line[f"{column}_{what}"]) for what in ("difference", "low", "high"))
                about = [line["student"], _labels(line), f"{line['method']} ({line['teachers']})", title]
                said = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
                rows.append([*about, said, f"{float(line[f'{column}_p_holm']):.4f}", line[f"{column}_verdict"]])
    rows.sort(key=lambda row: (row[0] != "image", row[1] != "100% labels", row[3], row[2]))
    head = ["student", "labels", "method", "against", "difference [95 %]", "p (Holm)", "verdict"]
    return _grid(head, rows, range(4, 6)) + f"\nNot distinguishable: {same} other comparisons.\n"


def cost() -> str:
    """The figures of benchmarks/results.json, bold where one is over its limit."""
    rows = []
    for one in json.loads(BENCHMARKS.read_text(encoding="utf-8")):
        limit = "" if one["limit"] is None else f"{one['limit']:g}"
        value = f"{one['value']:.3f} ± {one['spread']:.3f}"
        held = one["limit"] is None or one["value"] <= one["limit"]
        rows.append([one["name"], value if held else f"**{value}**", limit, one["device"]])
    return _grid(["figure", "measured", "at most", "on"], rows, range(1, 3))
