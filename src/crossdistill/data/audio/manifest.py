"""Manifests of audio: a table with path, domain, start, duration and rate of each clip; read, and made from folders."""

import csv
import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crossdistill.data.audio.any_sound import SOUND_FILES, THROUGH_AV, decode_sound
from crossdistill.data.audio.sound_file import read_header
from crossdistill.data.table_file import read_table
from crossdistill.errors import CrossdistillError, DataError, MissingExtraError
from crossdistill.runtime.files import file_fault

COLUMNS = ("path", "domain", "duration", "rate")
"""Columns that a written manifest has; `group` follows if it is asked for."""
KNOWN = ("path", "domain", "start", "duration", "rate", "split", "group", "target", "id")
"""Columns that the data set reads; others are listed as not read."""
NEAR = 0.82
"""Similarity of a column to a known one from which it is taken for a misspelling of it."""
SLACK = 0.5
"""Seconds by which a stated duration may be longer than its file, as durations in whole seconds are."""
CHECKED = 2000
"""Clips with stated durations up to which their headers are read at the start; those of more are checked when read."""
THREADS = 8
SHOWN = 3
SHORTEST = 400 / 16_000
"""Seconds of the receptive field of a HuBERT-like network: one frame."""


@dataclass
class Skipped:
    """Files or rows that are left out: how many, and the first with their reasons."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, why: str) -> None:
        """Count one; `why` names it and says the reason."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(why)

    def text(self, noun: str, of: int) -> str:
        """One sentence, or "" if nothing was skipped."""
        if not self.count:
            return ""
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"{self.count:,} of {of:,} {noun} skipped: {'; '.join(self.first)}{more}"


def unread(columns: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that are not read, and faults: those that are a known column in another spelling.

    A missed `group` or `split` would put parts of one recording or speaker into training and test without a word.
    """
    others, faults = [name for name in columns if name not in known], []
    for name in others:
        near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=NEAR)
        if near and near[0] not in columns:
            faults.append(f"column {name!r} is not read: did you mean {near[0]!r}? Rename the column")
    return others, faults


def beyond(path: str, start: float, seconds: float, held: float) -> str:
    """What to say of a clip that ends after its file; "" if it does not, up to rounding."""
    if start + seconds <= held + 1e-3:
        return ""
    return (
        f"{path}: the manifest has {seconds:g} s from second {start:g} on, and the file holds {held:.4g} s: "
        f"{'its start is after the end' if start >= held else 'its duration in the manifest is longer than the file'}"
    )


Scan = tuple[float, int] | str
"""Duration in seconds and rate in hertz of a file, or why it is left out."""


def scan(path: str, shortest: float = SHORTEST) -> Scan:
    """Duration and rate from a file's header; a file of fewer than `shortest` seconds is left out.

    Raises:
        MissingExtraError: the package that reads such files is not installed.
    """
    file = Path(path)
    try:
        if (fault := file_fault(file)) is not None:
            return f"{path}: {fault}"
        if file.suffix.lower() in THROUGH_AV:
            wave, rate = decode_sound(file)
            samples = len(wave)
        else:
            samples, rate = read_header(file)
    except MissingExtraError:
        raise
    except CrossdistillError as error:
        return str(error)
    if samples < max(shortest * rate, 1):
        return f"{path}: {samples:,} samples at {rate:,} Hz are less than {shortest:g} s"
    return samples / rate, rate


def scan_all(
    paths: Sequence[str],
    said: Callable[[int, int], None] = lambda done, total: None,
    shortest: float = SHORTEST,
) -> Iterator[Scan]:
    """The headers of files in their order, read by threads: the decoder releases Python's lock."""
    with ThreadPoolExecutor(THREADS) as threads:
        for done, found in enumerate(threads.map(partial(scan, shortest=shortest), paths, chunksize=64), 1):
            yield found
            if done % 1000 == 0 or done == len(paths):
                said(done, len(paths))


def sounds_in(folder: Path) -> list[str]:
    """The recordings of a folder and of those below it, in the order of their names.

    Raises:
        DataError: there is no such folder, or it holds no recording.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; give one with recordings ({', '.join(SOUND_FILES)})")
    found = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.join(place, name) for name in sorted(names) if name.lower().endswith(SOUND_FILES)]
    if not found:
        raise DataError(f"{folder}: holds no recording; wanted files {', '.join(SOUND_FILES)}")
    return found


@dataclass(frozen=True)
class Made:
    """What `make_manifest` wrote: hours and files by domain of the whole manifest, and what it left out.

    `kept` counts files that were in the manifest already with another domain than the given one, which stays.
    """

    added: int
    already: int
    hours: Mapping[str, float]
    clips: Mapping[str, int]
    skipped: str
    kept: Mapping[str, int] = field(default_factory=dict)


def make_manifest(
    folders: Sequence[Path],
    domain: str,
    to: Path,
    *,
    group: bool = False,
    said: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Scan folders and write their recordings as rows of a domain; rows are added to a manifest that is there.

    Paths below the manifest's folder are relative to it, others absolute. `group` writes the folder of each file as its
    group, which is never in two splits. A file that is in the manifest already keeps its row and its domain.

    Raises:
        DataError: a folder holds no recording, the manifest cannot be written in this format, or all files are bad.
    """
    to = to.expanduser().absolute()
    if to.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise DataError(f"{to}: a manifest is a file .csv, .jsonl or .parquet, found {to.suffix or 'no suffix'!r}")
    old: dict[str, list[Any]] = read_table(to, "utf-8", None).columns if to.exists() else {}
    if old and not {"path", "domain"} <= set(old):
        raise DataError(f"{to}: is no manifest: it lacks path or domain; it has {', '.join(old)}")
    there = dict(zip(old.get("path", ()), old.get("domain", ()), strict=True))
    paths = [path for folder in folders for path in sounds_in(folder.expanduser().absolute())]
    names = {path: _name(path, to.parent) for path in dict.fromkeys(paths)}
    new = {path: name for path, name in names.items() if name not in there}
    skipped, rows = Skipped(), []
    for name, found in zip(new.values(), scan_all(list(new), said), strict=True):
        if isinstance(found, str):
            skipped.add(found)
            continue
        row: dict[str, Any] = {"path": name, "domain": domain, "duration": round(found[0], 4), "rate": found[1]}
        rows.append({**row, "group": os.path.dirname(name)} if group else row)
    if not rows and not there:
        raise DataError(f"no recording can be read: {skipped.text('files', len(new))}")
    columns = list(dict.fromkeys([*old, *COLUMNS, *(("group",) if group else ())]))
    known = [dict(zip(old, cells, strict=True)) for cells in zip(*old.values(), strict=True)]
    _write(to, columns, [*known, *rows])
    hours, clips = dict[str, float](), dict[str, int]()
    for row in (*known, *rows):
        name = str(row["domain"])
        hours[name] = hours.get(name, 0.0) + float(row.get("duration") or 0) / 3600
        clips[name] = clips.get(name, 0) + 1
    kept = Counter(str(there[name]) for name in names.values() if name in there and str(there[name]) != domain)
    return Made(len(rows), len(names) - len(new), hours, clips, skipped.text("files", len(new)), dict(kept))


def _name(path: str, folder: Path) -> str:
    relative = os.path.relpath(path, folder)
    return path if relative.startswith(os.pardir + os.sep) else relative


def _write(to: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows beside the file first, so that a manifest is never half written."""
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.name}.part{to.suffix}")
    if to.suffix.lower() == ".parquet":
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtraError("writing parquet", "pyarrow", "parquet") from error
        parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in columns}), str(beside))
    else:
        with beside.open("w", encoding="utf-8", newline="") as file:
            if to.suffix.lower() == ".csv":
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
            else:
                for row in rows:
                    kept = {name: row[name] for name in columns if row.get(name) is not None}
                    file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    beside.replace(to)
