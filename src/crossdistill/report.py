"""What a run, a comparison or the demo ends in: rows of results, as JSON and as a table."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from crossdistill.errors import RunError
from crossdistill.runtime.escaping import markdown
from crossdistill.runtime.files import NO_FILE, file_fault, read_sealed, write_sealed, write_text
from crossdistill.runtime.hashing import bytes_hash, file_hash

RESULTS = "results.json"
FILES = "files.json"
"""Hashes of a run's results and predictions, and of what they belong to; the student's folder has its own."""
BELONGING = ("recipe.yaml", "student/config.json")
"""Files whose hashes tie the results to one run: each of them could be replaced by a valid file of another run."""
PREDICTIONS = "predictions.npz"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results: a method on a student, over as many seeds as there are values.

    `mean` and `std` (ddof 1; None for a single value) are of `values`, one for each seed. `test_rows` are the rows that
    they are over: those with a target for which there was an answer, since a row whose modalities are absent has none
    (of several seeds the fewest). `labelled` is the fraction of all training rows whose label could be used. `seconds`
    is the mean training time of a run, `peak_memory_mb` the largest peak of any: of the whole run, from loading the
    data over banks and stages to the test. A stage that was taken over counts as when it was trained.
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
        """Write `results.json`, atomically; for a run, before it, hashes of these and of what they belong to."""
        text = json.dumps([asdict(row) for row in self.rows], indent=2, allow_nan=False) + "\n"
        predictions = self.out / PREDICTIONS
        if predictions.is_file():
            others = {name: file_hash(self.out / name) for name in BELONGING if (self.out / name).is_file()}
            hashes = {PREDICTIONS: file_hash(predictions), RESULTS: bytes_hash(text.encode())}
            write_sealed(self.out / FILES, {"files": {**hashes, **others}})
        write_text(self.out / RESULTS, text)

    @classmethod
    def load(cls, out: Path) -> "Report":
        """Read a finished run's results.

        Raises:
            RunError: there are none, or they are damaged.
        """
        path = out / RESULTS
        if not path.is_file():
            raise RunError(f"{out} holds no finished run: {RESULTS} is not there; finish it with --resume")
        try:
            return cls(out, _sound_rows(out))
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}; mend it with --resume") from error

    @classmethod
    def of(cls, *folders: Path | str) -> "Report":
        """One table of several finished runs: those that differ in their seed alone become one line, mean ± deviation.

        `out` is the folder that they have in common; nothing is written.

        Raises:
            RunError: one of them is not finished, or damaged; or none was given.
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
        """The table: what `print(run(...))` shows."""
        return self.markdown()

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        head = (
            "| data | student | labels | method | accuracy | rows | seconds | memory MB |\n"
            "|---|---|--:|---|--:|--:|--:|--:|"
        )
        return "\n".join([head, *(_line(row) for row in self.rows)]) + "\n"


_ROWS = TypeAdapter(tuple[Row, ...])


def fault(out: Path) -> str | None:
    """What is damaged of the results and predictions of a finished run; None: nothing.

    Of a run of an earlier version, which left no hashes, as much as can be told without them.
    """
    try:
        _sound_rows(out)
        hashes = _hashes(out)
    except ValueError as error:
        return f"{out / RESULTS} is damaged: {error}"
    predictions = out / PREDICTIONS
    found = file_fault(predictions)
    if found is not None:
        return f"{predictions}: {found}"
    changed = PREDICTIONS in hashes and file_hash(predictions) != hashes[PREDICTIONS]
    return f"{predictions} is damaged: it is not what was written" if changed else foreign(out)


def foreign(out: Path) -> str | None:
    """Which part of a finished run is another run's: the recipe, or the student's folder, whose config names its files.

    None where all parts belong together, or nothing says what does.
    """
    try:
        hashes = _hashes(out)
    except ValueError as error:
        return str(error)
    for name in BELONGING:
        path = out / name
        if name in hashes and file_fault(path) is None and file_hash(path) != hashes[name]:
            return f"{path} is not the one of this run: its hash is not the one in {FILES}"
    return None


def finished(out: Path) -> bool:
    """Whether a folder holds a finished run whose results and predictions are what was written."""
    return (out / RESULTS).is_file() and fault(out) is None


def _sound_rows(out: Path) -> tuple[Row, ...]:
    """The rows of `results.json`.

    Raises:
        ValueError: they are not what was written, or no results.
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
    """By file, as `save` wrote them; none where it did not.

    Raises:
        ValueError: they are damaged.
    """
    unreadable = file_fault(out / FILES)
    if unreadable == NO_FILE:
        return {}
    try:
        if unreadable is not None:
            raise ValueError(unreadable)
        found = read_sealed(out / FILES)["files"]
        return {str(name): str(wanted) for name, wanted in found.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{FILES} beside it is damaged: {error}") from error


def _without_seed(run: Path) -> str:
    """What a run's recipe says, but for its seed."""
    path = run / "recipe.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else [str(run)]
    return "\n".join(line for line in lines if not line.startswith(("seed:", "origin:", "#")))


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
                test_rows=min(row.test_rows for row in group),
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
        f"| {row.test_rows:,} | {seconds} | {memory} |"
    )
