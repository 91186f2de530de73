"""Results of a run, a comparison or the demo: rows, as JSON and as a table."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crossdistill.errors import RunError
from crossdistill.runtime.escaping import markdown
from crossdistill.runtime.files import NO_FILE, file_fault, read_sealed, write_sealed, write_text
from crossdistill.runtime.hashing import bytes_hash, file_hash

RESULTS = "results.json"
FILES = "files.json"
"""Hashes of a run's results, predictions, recipe and student config; the student's folder has its own."""
BELONGING = ("recipe.yaml", "student/config.json", "student/crossdistill.json")
"""Files whose hashes tie the results to one run: each of them could be replaced by a valid file of another run."""
PREDICTIONS = "predictions.npz"
VALIDATION_LOSS = "validation loss"
"""The metric of a student that no test row measures."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric besides the main one: its values, one per seed, with their mean and deviation as in `Row`."""

    metric: str
    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results: a method on a student, over one or more seeds.

    `mean` and `std` (ddof 1; None for a single value) summarise `values`, one per seed. `test_rows` is the number of
    test rows with a target and a prediction; a row whose modalities are absent has no prediction (of several seeds the
    smallest number). `labelled` is the fraction of all training rows whose label could be used. `seconds`
    is the mean training time of a run, `peak_memory_mb` the largest peak of any run, from loading the data over banks
    and stages to the test. A reused stage counts with the time and memory of its training. `metric` is the main metric,
    `metrics` are the others of the run; the key is left out of `results.json` where there are none.
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
    metrics: tuple[Measured, ...] = ()

    def measured(self, metric: str) -> Measured | None:
        """One metric of this row; None if it was not computed."""
        main = Measured(self.metric, self.mean, self.std, self.values)
        return next((found for found in (main, *self.metrics) if found.metric == metric), None)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run folder."""

    out: Path
    rows: tuple[Row, ...]

    def save(self) -> None:
        """Write `results.json` atomically; for a run, write the hashes of `FILES` before it."""
        text = json.dumps([_plain(row) for row in self.rows], indent=2, allow_nan=False) + "\n"
        predictions = self.out / PREDICTIONS
        if predictions.is_file():
            others = {name: file_hash(self.out / name) for name in BELONGING if (self.out / name).is_file()}
            hashes = {PREDICTIONS: file_hash(predictions), RESULTS: bytes_hash(text.encode())}
            write_sealed(self.out / FILES, {"files": {**hashes, **others}})
        write_text(self.out / RESULTS, text)

    @classmethod
    def load(cls, out: Path | str) -> "Report":
        """Read a finished run's results.

        Raises:
            RunError: the results are missing or damaged.
        """
        out = Path(out)
        path = out / RESULTS
        if not path.is_file():
            raise RunError(f"{out} holds no finished run: {RESULTS} is missing; finish it with --resume")
        try:
            return cls(out, _sound_rows(out))
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}; repair it with --resume") from error

    @classmethod
    def of(cls, *folders: Path | str) -> "Report":
        """One table of several finished runs: runs that differ only in their seed become one line, mean ± deviation.

        `out` is their common parent folder; nothing is written.

        Raises:
            RunError: a run is unfinished or damaged, or no folder was given.
        """
        if not folders:
            raise RunError("no run was given; wanted the folders of finished runs")
        paths = list(dict.fromkeys(Path(folder) for folder in folders))
        alike: dict[str, list[Row]] = {}
        for path in paths:
            alike.setdefault(_without_seed(path), []).extend(cls.load(path).rows)
        rows = dict.fromkeys(row for group in alike.values() for row in merged(group))
        common = os.path.commonpath([path.absolute() for path in paths])
        return cls(Path(common), tuple(rows))

    def __str__(self) -> str:
        """The table, as `print(run(...))` shows it."""
        return self.markdown()

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        # The last word, of names such as "validation accuracy". A loss is never of test rows, and its column says so.
        names = (row.metric if row.metric == VALIDATION_LOSS else row.metric.rpartition(" ")[2] for row in self.rows)
        mains = list(dict.fromkeys(names))
        # In a table of runs of several tasks, each line names its metric.
        main = mains[0] if len(mains) == 1 else "metric"
        others = list(dict.fromkeys(other.metric for row in self.rows for other in row.metrics))
        head = (
            f"| data | student | labels | method | {' | '.join([main, *others])} | rows | seconds | memory MB |\n"
            f"|---|---|--:|---|{'--:|' * (1 + len(others))}--:|--:|--:|"
        )
        return "\n".join([head, *(_line(row, others, len(mains) > 1) for row in self.rows)]) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    return plain if row.metrics else {name: value for name, value in plain.items() if name != "metrics"}


_ROWS = TypeAdapter(tuple[Row, ...])


def fault(out: Path) -> str | None:
    """The damage to results or predictions of a finished run; None: no damage.

    Runs of earlier versions have no hashes; they are checked as far as possible without them.
    """
    try:
        _sound_rows(out)
        hashes = _hashes(out)
    except ValueError as error:
        return f"{out / RESULTS} is damaged: {error}"
    predictions = out / PREDICTIONS
    unreadable = file_fault(predictions)
    if unreadable is not None:
        return f"{predictions}: {unreadable}"
    changed = PREDICTIONS in hashes and file_hash(predictions) != hashes[PREDICTIONS]
    return f"{predictions} is damaged: its content is not what was written" if changed else foreign(out)


def foreign(out: Path) -> str | None:
    """The part of a finished run that belongs to another run: the recipe, or the config of the student's folder.

    None where all parts belong together, or the run has no hashes.
    """
    try:
        hashes = _hashes(out)
    except ValueError as error:
        return str(error)
    for name in BELONGING:
        path = out / name
        if name in hashes and file_fault(path) is None and file_hash(path) != hashes[name]:
            return f"{path} belongs to another run: its hash is not the one in {FILES}"
    return None


def finished(out: Path) -> bool:
    """Whether a folder contains a finished run with undamaged results and predictions."""
    return (out / RESULTS).is_file() and fault(out) is None


def _sound_rows(out: Path) -> tuple[Row, ...]:
    """The rows of `results.json`.

    Raises:
        ValueError: they have changed since they were written, or are no results.
    """
    try:
        text = (out / RESULTS).read_bytes()
        if _hashes(out).get(RESULTS, bytes_hash(text)) != bytes_hash(text):
            raise ValueError(f"its hash is not the one in {FILES}")
        rows = _ROWS.validate_json(text, strict=True)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not rows:
        raise ValueError("it has no rows")
    return rows


def _hashes(out: Path) -> dict[str, str]:
    """Hashes by file, as `save` wrote them; empty where it wrote none.

    Raises:
        ValueError: they are damaged.
    """
    unreadable = file_fault(out / FILES)
    if unreadable == NO_FILE:
        return {}
    try:
        if unreadable is not None:
            raise ValueError(unreadable)
        hashes = read_sealed(out / FILES)["files"]
        return {str(name): str(wanted) for name, wanted in hashes.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{FILES} beside it is damaged: {error}") from error


def _without_seed(run: Path) -> str:
    """The text of a run's recipe without its seed."""
    path = run / "recipe.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else [str(run)]
    return "\n".join(line for line in lines if not line.startswith(("seed:", "origin:", "#")))


def merged(rows: Sequence[Row]) -> list[Row]:
    """Rows of several seeds as one row for each setting, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.data, row.method, row.teachers, row.student, row.labelled, row.control, row.metric)
        groups.setdefault(key, []).append(row)
    combined = []
    for group in groups.values():
        first = group[0]
        values = tuple(value for row in group for value in row.values)
        combined.append(
            replace(
                first,
                values=values,
                mean=sum(values) / len(values),
                std=spread_of(values),
                metrics=_merged_metrics(group),
                test_rows=min(row.test_rows for row in group),
                seconds=sum(row.seconds for row in group) / len(group),
                peak_memory_mb=max(row.peak_memory_mb for row in group),
            )
        )
    return combined


def _merged_metrics(group: Sequence[Row]) -> tuple[Measured, ...]:
    """The metrics besides the main one that every row of a group has."""
    common = []
    for first in group[0].metrics:
        each = [row.measured(first.metric) for row in group]
        values = tuple(value for one in each if one is not None for value in one.values)
        if None not in each:
            common.append(Measured(first.metric, sum(values) / len(values), spread_of(values), values))
    return tuple(common)


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def number(row: Row | Measured) -> str:
    """Mean and standard deviation as text, such as "0.912 ± 0.004"."""
    return f"{row.mean:.3f}" if row.std is None else f"{row.mean:.3f} ± {row.std:.3f}"


def _line(row: Row, others: Sequence[str], named: bool) -> str:
    method = markdown(f"{row.method} ({row.teachers})" if row.teachers else row.method)
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    memory = f"{row.peak_memory_mb:.0f}" if row.peak_memory_mb else ""
    measured = [row.measured(metric) for metric in others]
    texts = [f"{row.metric} {number(row)}" if named else number(row)]
    texts += [number(one) if one is not None else "" for one in measured]
    return (
        f"| {markdown(row.data)} | {markdown(row.student)} | {row.labelled:.0%} | {method} | {' | '.join(texts)} "
        f"| {row.test_rows:,} | {seconds} | {memory} |"
    )
