"""Clips of recordings as a row source: a part of each file, decoded, mixed to mono and resampled when a batch needs it.

A file that cannot be read costs its own row alone: the next row of its kin (same split, domain and target) is read in
its place, and the file is counted and reported.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import Input
from crossdistill.data.audio.any_sound import decode_part
from crossdistill.data.audio.manifest import SLACK, beyond, scan
from crossdistill.data.file_facts import state_of
from crossdistill.data.rendering import Rendering, Sound, SoundRendering
from crossdistill.data.row_random import RowRandom
from crossdistill.data.workers import reading
from crossdistill.errors import DataError, ShapeError
from crossdistill.runtime.hashing import derived_seed, key_hash

log = logging.getLogger("crossdistill")

REVISION = 2
"""Of the rule by which crops of views are drawn: stored outputs of another one are not read."""
TRIES = 20
"""Rows that are read in the place of one that cannot be."""
RATE_STATED_WRONG = 2
BAD = 1


class Clips:
    """Parts of recordings: file, start and length of each row, without an object for each.

    Args:
        root: folder of the files; a name that is absolute stays as it is.
        names: the file of each row, as text.
        starts: where a clip begins in its file, in seconds.
        seconds: length of each clip.
        rates: the stated rate of each file in hertz, 0: none is stated.
        states: bytes and time of modification of each file (N, 2), as in `file_facts.state_of`.
        kin: rows of one number stand for each other where a file cannot be read.
        crop: longest part of a clip that is read, in seconds.
        shortest: clips of fewer seconds count as bad.
        seed: draws the parts.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[object],
        starts: NDArray[np.float64],
        seconds: NDArray[np.float64],
        rates: NDArray[np.int64],
        states: NDArray[np.int64],
        kin: NDArray[np.int64],
        *,
        crop: float,
        shortest: float,
        seed: int,
    ) -> None:
        self.root, self.crop, self.shortest, self.seed = str(root), crop, shortest, seed
        # One block of bytes: as objects, the names would be copied into each worker as their counters change.
        block, self._ends = bytearray(), np.zeros(len(names) + 1, dtype=np.int64)
        for row, name in enumerate(names, 1):
            block += os.fsencode(str(name))
            self._ends[row] = len(block)
        self._names = bytes(block)
        self._starts, self.seconds, self._rates, self._states = starts, seconds, rates, states
        self._order = np.argsort(kin, kind="stable")
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(len(kin))
        kinds, self._kin = np.unique(kin, return_inverse=True)
        self._bounds = np.searchsorted(kin[self._order], kinds), np.searchsorted(kin[self._order], kinds, side="right")
        # Shared with the workers, which find the bad files.
        self.marks = torch.zeros(len(names), dtype=torch.uint8).share_memory_()
        self.readers = 0
        self._last: tuple[Any, list[Sound]] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ends) - 1

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the last batch."""
        return {**self.__dict__, "_last": None}

    def path(self, row: int) -> Path:
        """The file of a row."""
        return Path(self.root, os.fsdecode(self._names[self._ends[row] : self._ends[row + 1]]))

    @property
    def skipped(self) -> int:
        """Rows whose files could not be read so far."""
        return int(((self.marks & BAD) > 0).sum())

    @property
    def key(self) -> str:
        """A hash of the files' names, sizes and times of modification, and of the clips.

        Reading the content of so many recordings would take hours: files that are copied anew count as others.
        """
        digest = hashlib.sha256(self._names)
        for values in (self._ends, self._starts, self.seconds, self._states):
            digest.update(np.ascontiguousarray(values).tobytes())
        return key_hash([digest.hexdigest(), self.crop, self.seed])

    def row_key(self, row: int) -> bytes:
        """Equal for clips of equal parts of one file."""
        own = [str(self.path(row)), float(self._starts[row]), float(self.seconds[row]), *self._states[row].tolist()]
        return key_hash([*own, row if self.seconds[row] > self.crop else -1]).encode()

    def check_unchanged(self) -> None:
        """Compare sizes and times of modification with those at the start; a file that is gone is skipped when read.

        Raises:
            DataError: a file was written since then; names the first.
        """
        for row, before in enumerate(self._states):
            now = state_of(os.path.join(self.root, os.fsdecode(self._names[self._ends[row] : self._ends[row + 1]])))
            if now[0] and now != tuple(before):
                raise DataError(
                    f"{self.path(row)}: was written after the start (it has {now[0]:,} bytes, and had {before[0]:,}): "
                    "load the data again"
                )

    def decoded(self, rows: Sequence[int], views: Sequence[int] | None) -> list[Sound]:
        """The cropped clips of some rows in their views (None: view 0), mono, at the rates of their files.

        Raises:
            DataError: neither a row's file nor those of the next rows of its kin can be read.
        """
        key = (tuple(rows), None if views is None else tuple(views))
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        made = [self._clip(row, part) for row, part in zip(rows, self._parts(rows, views), strict=True)]
        self._last = (key, made) if self.readers > 1 else None
        return made

    def _parts(self, rows: Sequence[int], views: Sequence[int] | None) -> list[float]:
        """The drawn number of each row, which depends on its own id and view alone, not on those beside it."""
        seed, ids = derived_seed("crop", self.seed), torch.tensor(rows, dtype=torch.int64)
        drawn = RowRandom(seed, ids).uniform(1)[:, 0]
        if views is not None:
            view = torch.tensor(views, dtype=torch.int64)
            drawn = torch.where(view == 0, drawn, RowRandom(seed, ids, view).uniform(1)[:, 0])
        parts: list[float] = drawn.tolist()
        return parts

    def _clip(self, row: int, drawn: float) -> Sound:
        kin = self._kin[row]
        first, end = int(self._bounds[0][kin]), int(self._bounds[1][kin])
        tries = min(TRIES, end - first)
        for step in range(tries):
            other = int(self._order[first + (self._place[row] - first + step) % (end - first)])
            if self.marks[other] & BAD:
                continue
            reading(other)
            try:
                return self._read(other, drawn)
            except DataError as error:
                self._report(other, error)
        raise DataError(
            f"{self.path(row)}: cannot be read, nor can the next {tries - 1:,} files of its domain and split; look at "
            "the data folder"
        )

    def _read(self, row: int, drawn: float) -> Sound:
        path, seconds = self.path(row), float(self.seconds[row])
        length = min(self.crop, seconds)
        start = float(self._starts[row]) + drawn * (seconds - length)
        try:
            wave, rate = decode_part(path, start, length)
        except DataError as error:
            # A crop behind the end of its file fails, and one before it does not.
            raise DataError(self._beyond(row) or str(error)) from error
        if len(wave) < (length - SLACK) * rate and (why := self._beyond(row)):
            raise DataError(why)
        if len(wave) < self.shortest * rate:
            raise DataError(f"{path}: {len(wave):,} samples at {rate:,} Hz are less than {self.shortest:g} s")
        stated = int(self._rates[row])
        if stated not in (0, rate) and not (self.marks & RATE_STATED_WRONG).any():
            self.marks[row] |= RATE_STATED_WRONG
            log.warning(
                "%s: the manifest states a rate of %d Hz, and the file has %d Hz, which is used; further files of "
                "another rate than stated are not named",
                path,
                stated,
                rate,
            )
        return Sound(torch.from_numpy(wave), rate)

    def _beyond(self, row: int) -> str:
        """Whether a clip ends after its file, by the header; "" if it does not."""
        found = scan(path := str(self.path(row)))
        if isinstance(found, str):
            return ""
        return beyond(path, float(self._starts[row]), float(self.seconds[row]), found[0])

    def _report(self, row: int, error: DataError) -> None:
        """Count a bad file: the first is named with its reason, then numbers of them."""
        self.marks[row] |= BAD
        count = self.skipped
        if count == 1 or str(count).strip("0") == "1":
            log.warning("%d of %d clips skipped, last %s; the next clip of its domain is read instead", count,
                        len(self), error)  # fmt: skip


class ClipSource:
    """A row source: one rendering of clips, {"values": (B, longest), "lengths": (B,)} in samples."""

    deterministic = True
    dtype = torch.float32

    def __init__(self, clips: Clips, rendering: Rendering) -> None:
        """The clips as this rendering.

        Raises:
            DataError: it is no rendering of sounds.
        """
        if not isinstance(rendering, SoundRendering):
            raise DataError(f"clips take a SoundRendering, found a {type(rendering).__name__}")
        self.clips, self.rendering = clips, rendering
        self.view: Tensor | None = None
        samples = torch.from_numpy(np.minimum(clips.seconds, clips.crop) * rendering.rate).round().long()
        frames = samples if rendering.kind == "wave" else 1 + samples // rendering.hop
        self.lengths = frames if rendering.seconds is None else None
        shape = rendering.shape
        self.spec = rendering.spec(shape if self.lengths is None else (*shape[:-1], int(frames.max())))
        self.fingerprint = key_hash([clips.key, rendering.key])
        clips.readers += 1

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.clips)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, samples of the longest)."""
        return (len(self.clips), *self.spec.shape)

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The rendered clips of some rows.

        Raises:
            DataError: a clip and the next ones of its kin cannot be read.
            ShapeError: `in_view` got another number of views.
        """
        if self.view is not None and len(self.view) != len(rows):
            raise ShapeError(f"clips: {len(rows)} rows are read in {len(self.view)} views; give a view for each row")
        decoded = self.clips.decoded(rows.tolist(), None if self.view is None else self.view.tolist())
        rendered: Input = self.rendering.apply_all(decoded)
        return rendered

    def in_view(self, view: Int64[Tensor, " B"]) -> "ClipSource":
        """The same clips, of which the next rows are read in these views: each has another crop."""
        viewed = copy.copy(self)
        viewed.view = view
        return viewed

    def rendered(self, rendering: Rendering) -> "ClipSource":
        """The same parts of the clips in another rendering, such as another rate; both are decoded once."""
        return ClipSource(self.clips, rendering)

    def name_of(self, row: int) -> str:
        """The file of a row, for errors."""
        return str(self.clips.path(row))

    def row_key(self, row: int) -> bytes:
        """Equal for clips of equal parts of one file."""
        return self.clips.row_key(row)

    def check_unchanged(self) -> None:
        """Check that the files are as at the start.

        Raises:
            DataError: a file has another size.
        """
        self.clips.check_unchanged()


class CropViews:
    """An augmentation: each view of a row is another crop of its clip, which the source itself reads."""

    def __init__(self, views: int | None) -> None:
        self.views = views

    @property
    def key(self) -> str:
        """A hash of the settings."""
        return key_hash(["crops", REVISION, self.views])

    def __call__(self, inputs: Any, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Any:
        """The inputs as they are."""
        return inputs
