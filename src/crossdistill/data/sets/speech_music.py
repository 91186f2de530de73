"""`speech-music`: clips of recordings of several domains, such as speech and music, named in a manifest.

A manifest is a csv, jsonl or parquet file with a row for each clip: path, domain, and optionally start and duration in
seconds, rate in hertz, split, group, target and id. `crossdistill audio manifest` writes one from folders.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from crossdistill.data.audio.any_sound import THROUGH_AV, check_packages
from crossdistill.data.audio.clips import Clips, ClipSource, CropViews
from crossdistill.data.audio.manifest import CHECKED, KNOWN, SHORTEST, SLACK, Skipped, beyond, scan, scan_all, unread
from crossdistill.data.cache import CacheEntry
from crossdistill.data.config import DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.data.domain_mix import DomainMix
from crossdistill.data.file_facts import state_of
from crossdistill.data.input_options import HIGHEST_RATE, LOWEST_RATE
from crossdistill.data.own_splits import few_rows, of_column
from crossdistill.data.rendering import SoundRendering
from crossdistill.data.split import SPLITS, default_split
from crossdistill.data.table_cells import Faults, check_ids, filled
from crossdistill.data.table_file import Table, read_table
from crossdistill.errors import DataError, nearest

log = logging.getLogger("crossdistill")

CROP_SAMPLES, RATE = 250_000, 16_000
"""The longest part of a clip in the reference, and its rate in hertz."""
TINY_ROWS, TINY_SECONDS = 240, 1.0
MODALITY = "audio"


class SpeechMusicConfig(DataConfig):
    """Clips of recordings of several domains (speech, music, ...), named in a manifest with their domains."""

    of_files: ClassVar[bool] = True

    name: Literal["speech-music"] = "speech-music"
    manifest: Path | None = Field(default=None, description="csv, jsonl or parquet with columns path and domain")
    rate: int = Field(default=RATE, ge=LOWEST_RATE, le=HIGHEST_RATE, description="samples a second of the input")
    crop_seconds: float = Field(
        default=CROP_SAMPLES / RATE, gt=0, le=3600, description="longest part of a clip that is read at once"
    )
    min_seconds: float = Field(default=SHORTEST, gt=0, description="shorter clips are skipped and counted")
    crops: int | None = Field(
        default=1, ge=1, description="random crops of a clip: the same in each epoch, or so many; null: always another"
    )
    domains: tuple[str, ...] = Field(default=(), description="domains to read; empty: all of the manifest")
    quotas: Mapping[str, int] = Field(
        default_factory=dict,
        description="rows of each domain in every batch, as data.quotas.speech=12",
        json_schema_extra={"grows": True},
    )
    temperature: float | None = Field(
        default=None, gt=0, description="of the shares of domains: 1 as they come, large: equal"
    )
    fractions: tuple[float, float] = Field(default=(0.8, 0.1), description="of training and validation; rest: test")
    rows: int | None = Field(default=None, ge=3, description="at most so many clips, of all domains alike; null: all")

    @field_validator("manifest")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """A run that is resumed from another folder reads the same data."""
        return None if value is None else value.expanduser().absolute()

    @field_validator("domains", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "SpeechMusicConfig":
        if self.quotas or self.temperature is not None:
            DomainMix(quotas=self.quotas, temperature=self.temperature)
        if not (0 < self.fractions[0] < 1 and 0 < self.fractions[1] < 1 and sum(self.fractions) < 1):
            raise ValueError(f"fractions={list(self.fractions)}: two shares above 0 that leave some rows for the test")
        if self.min_seconds > self.crop_seconds:
            raise ValueError(f"min_seconds={self.min_seconds:g} is more than crop_seconds={self.crop_seconds:g}")
        return self

    def cached(self) -> CacheEntry | None:
        """None: clips are read from their files."""
        return None

    def tiny(self) -> "SpeechMusicConfig":
        """A few hundred clips of a second at most."""
        rows, seconds = min(self.rows or TINY_ROWS, TINY_ROWS), min(self.crop_seconds, TINY_SECONDS)
        return self.model_copy(update={"rows": rows, "crop_seconds": max(seconds, self.min_seconds)})

    def build(self, progress: OnProgress) -> Dataset:
        """The clips of the manifest; headers are read where it states no duration, samples when a batch needs them.

        Raises:
            DataError: faults of the manifest, or no clip of a domain can be read.
            MissingExtraError: soundfile, PyAV for m4a and the like, or pyarrow for parquet, is not installed.
        """
        if self.manifest is None:
            raise DataError(
                "data 'speech-music': data.manifest is not set; make one by `crossdistill audio manifest DIR --domain "
                "speech --to FILE` and give --set data.manifest=FILE"
            )
        root = self.manifest.parent if self.root is None else self.folder()
        rows, note = self._readable(read_table(self.manifest, "utf-8", None), root, progress)
        domain, groups = rows.domain, rows.groups
        strata = torch.from_numpy(_numbered(domain))
        targets = rows.table.columns.get("target")
        splits, how = self._splits(rows, strata)
        rendering = SoundRendering(rate=self.rate, kind="wave", normalise="mean")
        clips = Clips(
            root,
            rows.table.columns["path"],
            rows.starts,
            rows.seconds,
            rows.rates,
            rows.states,
            _kin(strata, splits, targets),
            crop=self.crop_seconds,
            shortest=self.min_seconds,
            seed=self.seed,
        )
        # The texts of a large manifest take as much memory as all that is made of them.
        del rows
        source = ClipSource(clips, rendering)
        dataset = Dataset.from_arrays(
            self.name,
            {MODALITY: source},
            targets,
            splits=splits,
            domain=domain,
            groups=groups,
            task="none" if targets is None else None,
            input_specs={MODALITY: source.spec},
            about=f"{len(domain):,} clips of {self.manifest.name}.",
            progress=progress,
        )
        if self.quotas or self.temperature is not None:
            dataset = replace(dataset, mix=DomainMix(quotas=self.quotas, temperature=self.temperature))
        if self.crops != 1:
            dataset = replace(dataset, augmentation=CropViews(self.crops))
        parts = [_hours(domain, clips.seconds), how, note]
        return replace(dataset, how_split="; ".join(text for text in parts if text))

    def _readable(self, table: Table, root: Path, progress: OnProgress) -> "tuple[_Rows, str]":
        """The clips that can be read, as far as the manifest, headers and sizes tell; and a sentence on the others.

        Raises:
            DataError: a column is missing or a cell is wrong, or a domain has no clip left.
        """
        assert self.manifest is not None
        faults = Faults(self.manifest)
        for column in ("path", "domain"):
            if column not in table.columns:
                faults.add(f"there is no column {column!r}; {nearest(column, table.columns)} (columns that are read: "
                           f"{', '.join(KNOWN)})")  # fmt: skip
        others, misspelled = unread(list(table.columns), KNOWN)
        for fault in misspelled:
            faults.add(fault)
        faults.check()
        names = filled(table, "path", "path", faults)
        domain = [sys.intern(name) for name in filled(table, "domain", "domain", faults)]
        numbers = {name: _numbers(table, name, faults) for name in ("start", "duration", "rate")}
        if "id" in table.columns:
            check_ids(table, "id", faults)
        unknown = [name for name in self.domains if name not in set(domain)]
        if unknown:
            faults.add(f"data.domains: no row is of the domain {unknown[0]!r}; {nearest(unknown[0], domain)}")
        faults.check()
        kept = np.arange(len(domain))
        if self.domains:
            kept = kept[[name in self.domains for name in domain]]
        if self.rows is not None and len(kept) > self.rows:
            kept = kept[few_rows([domain[row] for row in kept], self.rows, self.seed)]
        starts = np.nan_to_num(numbers["start"])
        # A worker would find it missing at the first batch with such a file.
        check_packages(names[row] for row in kept)
        seconds, rates = _measured(root, names, kept, starts, numbers, self.min_seconds, progress)
        why = _longer_than_files(root, names, kept, starts, seconds, numbers["duration"], progress)
        states, bad, skipped = np.zeros((len(kept), 2), dtype=np.int64), np.zeros(len(kept), dtype=bool), Skipped()
        prefix = str(root)
        for place, row in enumerate(kept):
            # As objects of pathlib, 300,000 names take ten seconds.
            path = os.path.join(prefix, names[row])
            states[place] = state = state_of(path)
            if row in why or not state[0] or not seconds[row] >= self.min_seconds - 1e-9:
                bad[place] = True
                skipped.add(why.get(int(row)) or _fault(path, starts[row], seconds[row], self.min_seconds))
        index = kept[~bad]
        lost = sorted({domain[row] for row in kept[bad]} - {domain[row] for row in index})
        note = skipped.text("clips", len(kept))
        if lost or not len(index):
            raise DataError(f"{self.manifest}: no clip of the domain {lost[0] if lost else ''!r} can be read: {note}")
        if note:
            log.warning("data %r: %d of %d clips skipped; its notes (how_split) name the first", self.name,
                        skipped.count, len(kept))  # fmt: skip
        left = table if len(index) == len(table) else table.rows(index.tolist())
        groups = _of_one_file([os.path.normpath(os.path.join(prefix, names[row])) for row in index])
        if "group" in table.columns:
            cells = [str(cell) if cell is not None else f"row {row}" for row, cell in enumerate(left.columns["group"])]
            groups["group"] = torch.from_numpy(_numbered(cells))
        twice = _repeated(groups, starts[index], seconds[index])
        if twice:
            said = f"{twice:,} rows are copies of another row (the same part of the same file), which counts twice"
            log.warning("data %r: %s: %s; leave them out", self.name, self.manifest, said)
        note = "; ".join(text for text in (note, f"columns not read: {', '.join(others)}" if others else "") if text)
        chosen = domain if left is table else [domain[row] for row in index]
        stated = rates[index].astype(np.int64)
        return _Rows(left, chosen, starts[index], seconds[index], stated, states[~bad], groups), note

    def _splits(self, rows: "_Rows", strata: Tensor) -> tuple[dict[str, Tensor], str]:
        if "split" in rows.table.columns:
            return of_column(
                rows.table,
                "split",
                strata,
                rows.groups,
                self.seed,
                "domain",
                tested="target" in rows.table.columns,
                instead="leave the column out, and splits are drawn by domain",
            )
        if len(rows.domain) < len(SPLITS):
            raise DataError(f"{len(rows.domain)} clips are too few for training, validation and test")
        return default_split(self.name, strata, rows.groups, self.seed, self.fractions, "domain")


@dataclass(frozen=True)
class _Rows:
    """The clips that can be read: cells, domains, seconds, rates (0: unknown), states of files, groups."""

    table: Table
    domain: list[str]
    starts: NDArray[np.float64]
    seconds: NDArray[np.float64]
    rates: NDArray[np.int64]
    states: NDArray[np.int64]
    groups: Mapping[str, Tensor]


def _of_one_file(paths: Sequence[str]) -> dict[str, Tensor]:
    """Parts of one recording as a group by their file; empty where each clip has its own."""
    return {"path": torch.from_numpy(_numbered(paths))} if len(set(paths)) < len(paths) else {}


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """The place of each name among the sorted ones, without an array of all texts."""
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.fromiter((places[name] for name in names), np.int64, len(names))


def _numbers(table: Table, column: str, faults: Faults) -> NDArray[np.float64]:
    """A column of numbers of 0 or more; NaN where a cell is empty or the column is missing."""
    cells = table.columns.get(column)
    if cells is None:
        return np.full(len(table), np.nan)
    try:
        values = np.fromiter((np.nan if cell is None else float(cell) for cell in cells), np.float64, len(cells))
    except (TypeError, ValueError):
        wrong = [row for row, cell in enumerate(cells) if cell is not None and not _is_number(cell)]
        faults.add(f"column {column!r} holds {cells[wrong[0]]!r} in {table.some(wrong)}; wanted numbers")
        return np.full(len(table), np.nan)
    wrong = np.flatnonzero((values < 0) | np.isinf(values)).tolist()
    if wrong:
        faults.add(f"column {column!r} holds {cells[wrong[0]]!r} in {table.some(wrong)}; wanted numbers of 0 or more")
    return values


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _measured(
    root: Path,
    names: Sequence[str],
    kept: NDArray[np.int64],
    starts: NDArray[np.float64],
    numbers: Mapping[str, NDArray[np.float64]],
    shortest: float,
    progress: OnProgress,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds and rate of each clip; of those without a duration, from the headers of their files (NaN: unreadable)."""
    seconds, rates = numbers["duration"].copy(), np.nan_to_num(numbers["rate"])
    due = kept[np.isnan(seconds[kept])].tolist()
    scans = scan_all(
        [os.path.join(root, names[row]) for row in due],
        lambda done, total: progress("reading headers", done, total),
        shortest,
    )
    for row, found in zip(due, scans, strict=True):
        if not isinstance(found, str):
            seconds[row], rates[row] = found[0] - starts[row], rates[row] or found[1]
    return seconds, rates


def _longer_than_files(
    root: Path,
    names: Sequence[str],
    kept: NDArray[np.int64],
    starts: NDArray[np.float64],
    seconds: NDArray[np.float64],
    stated: NDArray[np.float64],
    progress: OnProgress,
) -> dict[int, str]:
    """Why rows are left out whose stated part ends after the file; up to `SLACK`, `seconds` is shortened instead.

    Of a large manifest no header is read, which would take minutes: `Clips` finds such rows when it reads them.
    """
    due = [row for row in kept[~np.isnan(stated[kept])].tolist() if not names[row].lower().endswith(THROUGH_AV)]
    why: dict[int, str] = {}
    if len(due) > CHECKED:
        return why
    scans = scan_all(
        [os.path.join(root, names[row]) for row in due],
        lambda done, total: progress("comparing durations with headers", done, total),
        0.0,
    )
    for row, found in zip(due, scans, strict=True):
        if isinstance(found, str):
            why[row] = found
            continue
        held = found[0] - starts[row]
        said = beyond(os.path.join(root, names[row]), starts[row], seconds[row], found[0])
        if said and (held <= 0 or seconds[row] > held + SLACK):
            why[row] = said
        elif said:
            seconds[row] = held
    return why


def _repeated(groups: Mapping[str, Tensor], starts: NDArray[np.float64], seconds: NDArray[np.float64]) -> int:
    """How many rows are an earlier row's part of its file."""
    if "path" not in groups:
        return 0
    parts = np.stack([groups["path"].numpy().astype(np.float64), starts, seconds], 1)
    return len(parts) - len(np.unique(parts, axis=0))


def _fault(path: str, start: float, seconds: float, shortest: float) -> str:
    """Why a clip is left out."""
    if not os.path.exists(path):
        return f"{path}: does not exist"
    if not state_of(path)[0]:
        return f"{path}: is empty"
    if np.isnan(seconds):
        found = scan(path, shortest)
        return found if isinstance(found, str) else f"{path}: its duration is unknown"
    if seconds <= 0 < start:
        return f"{path}: its clip begins at second {start:g}, and it ends at second {start + seconds:g}"
    return f"{path}: {seconds:g} s from second {start:g} on are less than {shortest:g} s"


def _kin(strata: Tensor, splits: Mapping[str, Tensor], targets: list[Any] | None) -> NDArray[np.int64]:
    """Equal for rows of one split, domain and target."""
    place = np.full(len(strata), len(splits), dtype=np.int64)
    for number, rows in enumerate(splits.values()):
        place[rows.numpy()] = number
    kin = strata.numpy() * (len(splits) + 1) + place
    if targets is not None:
        target = _numbered([str(cell) for cell in targets])
        kin = np.unique(kin * (int(target.max()) + 1) + target, return_inverse=True)[1]
    return kin.astype(np.int64)


def _hours(domain: list[str], seconds: NDArray[np.float64]) -> str:
    names, place = sorted(set(domain)), _numbered(domain)
    sizes = [f"{name} {(place == number).sum():,} clips, {seconds[place == number].sum() / 3600:.3g} h"
            for number, name in enumerate(names)]  # fmt: skip
    return f"domains: {'; '.join(sizes)}"
