"""The labelled recordings of a probe, their splits, and how official layouts are found and divided."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crossdistill.data.audio.any_sound import SOUND_FILES
from crossdistill.errors import DataError

SPLITS = ("train", "validation", "test")
Kind = Literal["classes", "numbers", "text"]
"""What a probe predicts: a class for each slot, numbers, or a text."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording, or a part of it of `seconds` from `start` on.

    `labels` has a class name for each slot, or one text; `numbers` are the targets of a regression. `id` names the clip
    in stored subsets: its path below the folder of the data, with start and length of a part.

    Raises:
        DataError: a target is NaN or infinite, the part starts before the recording, or its length is not above 0.
    """

    id: str
    path: Path
    labels: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    start: float = 0.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers: a wrong one would give features of another sound."""
        if not all(map(math.isfinite, self.numbers)):
            raise DataError(f"{self.id}: wanted finite numbers as targets, found {', '.join(map(repr, self.numbers))}")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise DataError(f"{self.id}: wanted a start of 0 s or more, found {self.start!r}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise DataError(f"{self.id}: wanted a part of more than 0 s, found {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class Fold:
    """One division of the clips: their row numbers in each split."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProbeData:
    """The clips of a task with their divisions; the score of a task is the mean over its folds.

    `remark` states what was decided where the data have no official split.

    Raises:
        DataError: two clips have one id, so that stored subsets could not tell them apart.
    """

    clips: tuple[Clip, ...]
    folds: tuple[Fold, ...]
    remark: str = ""
    slots: tuple[str, ...] = field(default=("label",))

    def __post_init__(self) -> None:
        """Check that ids are unique."""
        name, count = Counter(clip.id for clip in self.clips).most_common(1)[0] if self.clips else ("", 1)
        if count > 1:
            raise DataError(f"{name}: {count} clips are this part of this recording; give each recording or part once")

    def classes(self) -> tuple[tuple[str, ...], ...]:
        """Sorted class names of each slot, over all clips."""
        return tuple(tuple(sorted(set(names))) for names in zip(*(clip.labels for clip in self.clips), strict=True))


def divided(
    clips: Sequence[Clip],
    splits: Sequence[str],
    where: Path,
    remark: str = "",
    slots: tuple[str, ...] = ("label",),
    rule: str = "",
) -> ProbeData:
    """Data with one division, from the name of each clip's split; `rule` says in a fault which clips are in which.

    Raises:
        DataError: a split has no clip, or a name is that of no split.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise DataError(f"{where}: no split is called {unknown[0]!r}; wanted {', '.join(SPLITS)}")
    parts = {name: tuple(row for row, split in enumerate(splits) if split == name) for name in SPLITS}
    empty = [name for name, rows in parts.items() if not rows]
    if empty:
        how = f": {rule or remark}" if rule or remark else ""
        raise DataError(f"{where}: no clip belongs to the split {' or '.join(empty)}, of {len(clips):,} clips{how}")
    return ProbeData(tuple(clips), (Fold(**parts),), remark, slots)


def crossed(clips: Sequence[Clip], groups: Sequence[str], where: Path, units: Sequence[str], remark: str) -> ProbeData:
    """A fold for each group, whose clips are its test; the next group is its validation.

    With two groups, the validation is a fifth of the other group, by the hash of `units`: clips of one unit (a source
    recording, a sentence) stay together. The remark of the data says so: published protocols train on all other groups.

    Raises:
        DataError: there is one group alone.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise DataError(f"{where}: wanted at least 2 groups of clips, to test on one that is not trained on; found 1")
    folds = []
    for place, name in enumerate(names):
        later = names[(place + 1) % len(names)]
        test = tuple(row for row, group in enumerate(groups) if group == name)
        rest = [row for row, group in enumerate(groups) if group != name]
        held = _fifth(rest, units) if len(names) == 2 else {row for row in rest if groups[row] == later}
        folds.append(Fold(tuple(row for row in rest if row not in held), tuple(sorted(held)), test))
    if len(names) == 2:
        how = "in each of 2 folds, a fifth of the other fold is the validation and the rest of it trains"
    else:
        how = f"in each of {len(names)} folds, the next fold is the validation and the other {len(names) - 2} train"
    return ProbeData(tuple(clips), tuple(folds), "; ".join(text for text in (remark, how) if text))


def _fifth(rows: Sequence[int], units: Sequence[str]) -> set[int]:
    """The rows of a fifth of the units, at least one, by hash."""
    names = sorted({units[row] for row in rows}, key=hashed)
    held = set(names[: max(1, len(names) // 5)])
    return {row for row in rows if units[row] in held}


def split_by_hash(units: Iterable[str]) -> list[str]:
    """The split of each unit: 60, 20 and 20 % of the hashes, so that a unit keeps its split when clips are added."""
    shares = [hashed(unit) for unit in units]
    return ["train" if share < 0.6 else "validation" if share < 0.8 else "test" for share in shares]


def split_each_class(clips: Sequence[Clip], units: Sequence[str]) -> list[str]:
    """Three splits (60, 20, 20 %) of every class, in which clips of one unit stay together.

    Units are ordered by hash within each class; a class of fewer than 3 units cannot have all splits.
    """
    splits = [""] * len(clips)
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, clip in enumerate(clips):
        rows.setdefault(clip.labels, []).append(row)
    for group in rows.values():
        names = sorted({units[row] for row in group}, key=hashed)
        held = max(1, round(0.2 * len(names)))
        place = {
            name: "test" if i < held else "validation" if i < 2 * held else "train" for i, name in enumerate(names)
        }
        for row in group:
            splits[row] = place[units[row]]
    return splits


def hashed(text: str) -> float:
    """A number in [0, 1) from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def sounds(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Recordings below a folder, sorted by path; empty if there is none."""
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SOUND_FILES and path.is_file())


def clip_of(path: Path, root: Path, *labels: str, numbers: tuple[float, ...] = ()) -> Clip:
    """The clip of a whole file."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return Clip(name, path, labels, numbers)


def named_sounds(
    root: Path, pattern: re.Pattern[str], folders: Sequence[str] = ("",)
) -> list[tuple[Path, re.Match[str]]]:
    """Recordings below the first of `folders` that has any whose stem fits a pattern, with the match."""
    for folder in folders:
        matches = [(path, pattern.fullmatch(path.stem)) for path in sounds(root / folder)]
        fitting = [(path, match) for path, match in matches if match is not None]
        if fitting:
            return fitting
    return []


def sound_named(stem: Path) -> Path | None:
    """The recording of this path without its suffix, whichever suffix it has."""
    return next((path for end in SOUND_FILES if (path := stem.with_name(stem.name + end)).is_file()), None)


def layout_error(root: Path, wanted: str) -> DataError:
    """The error for a folder without the layout of a data set."""
    if not root.exists():
        return DataError(f"{root}: there is no such folder; wanted {wanted}")
    inside = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())[:5] if root.is_dir() else ["a file"]
    return DataError(f"{root}: wanted {wanted}; found {', '.join(inside) or 'an empty folder'}")


Reader = Callable[[Path], ProbeData]
"""A reader of an official layout, from the folder of the data.

Raises `DataError` where the layout is missing; the message says what was wanted.
"""
