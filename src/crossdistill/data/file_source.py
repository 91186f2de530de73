"""Row sources over files and texts: decoded when a batch needs them, and rendered for each network that reads them."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data import file_facts
from crossdistill.data.array_file import native, read_array
from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.data.augmentation import Parts
from crossdistill.data.file_facts import Facts, FileKind
from crossdistill.data.kept import KeptPictures
from crossdistill.data.picture_file import decode_picture
from crossdistill.data.rendering import (
    ArrayRendering,
    PictureRendering,
    Rendering,
    Sound,
    SoundRendering,
    TextRendering,
)
from crossdistill.data.workers import reading
from crossdistill.errors import DataError, ShapeError
from crossdistill.runtime.hashing import key_hash

RENDERINGS: Mapping[str, type[Any]] = {
    "image": PictureRendering,
    "sound": SoundRendering,
    "array": ArrayRendering,
    "text": TextRendering,
}
"""The kind of rendering that each kind of file takes."""


class Files:
    """The files of one modality, one a row, with their facts; a row without a file has the path None.

    Several renderings of the same rows decode them once: the last batch is kept while another rendering may read it.
    """

    def __init__(self, kind: FileKind, root: str, paths: Sequence[str | None], facts: Sequence[Facts | None]) -> None:
        self.kind = kind
        self.root = root
        # One block of bytes: as objects, the names would take ten times the memory, also in each worker.
        names = [b"" if path is None else os.fsencode(path.removeprefix(root + os.sep)) for path in paths]
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])
        hashes = b"".join(bytes(32) if one is None else bytes.fromhex(one.sha256) for one in facts)
        self._hashes = np.frombuffer(hashes, dtype=np.uint8).reshape(len(facts), 32)
        self._shapes = _shapes([() if one is None else one.shape for one in facts])
        self._states = np.array(
            [(0, 0) if path is None else file_facts.state_of(path) for path in paths], dtype=np.int64
        )
        self.readers = 0
        self.kept: KeptPictures | None = None
        """Pictures that have been decoded before."""
        self._last: tuple[tuple[int, ...], list[Any]] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ends) - 1

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the pictures in memory."""
        return {**self.__dict__, "_last": None, "kept": None}

    def keep(self, most_bytes: int) -> None:
        """Keep decoded pictures in memory from now on, if all together take at most so many bytes."""
        self.kept = KeptPictures.of(self._shapes, most_bytes) if self.kind == "image" else None

    def path(self, row: int) -> Path | None:
        """The file of a row."""
        name = self._names[self._ends[row] : self._ends[row + 1]]
        return Path(self.root, os.fsdecode(name)) if name else None

    def shape(self, row: int) -> tuple[int, ...]:
        """The decoded shape of a row's file, as in `Facts`."""
        return tuple(int(size) for size in self._shapes[row] if size >= 0)

    def hash_of(self, row: int) -> bytes:
        """SHA-256 of the content of a row's file."""
        return bytes(self._hashes[row])

    def contents(self) -> NDArray[np.int64]:
        """A number for each row, equal for files of equal content; -1 for a row without a file."""
        whole = np.ascontiguousarray(self._hashes).view("V32").reshape(-1)
        numbers = np.unique(whole, return_inverse=True)[1].astype(np.int64)
        return np.where(np.diff(self._ends) > 0, numbers, -1)

    def content(self) -> str:
        """A hash of the content of all files, in the order of the rows."""
        there = np.diff(self._ends) > 0
        return key_hash([self.kind, file_facts.VERSION, self._hashes.tobytes().hex(), there.tobytes().hex()])

    def decoded(self, rows: Sequence[int]) -> list[Any]:
        """The decoded files of some rows.

        Raises:
            DataError: a file cannot be read any more, or has another content; names it.
        """
        key = tuple(rows)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        kept = [False] * len(rows) if self.kept is None else self.kept.there(rows)
        decoded = []
        for row, there in zip(rows, kept, strict=True):
            reading(row)
            decoded.append(self.kept.picture(row) if there and self.kept is not None else self._decode(row))
        if self.kept is not None and not all(kept):
            new = zip(rows, decoded, kept, strict=True)
            self.kept.keep({row: picture for row, picture, there in new if not there})
        self._last = (key, decoded) if self.readers > 1 else None
        return decoded

    def check_unchanged(self) -> None:
        """Compare sizes and times of modification with those at the start, and the content where they differ.

        Raises:
            DataError: a file has another content, or is gone; names the first.
        """
        changed = []
        for row, before in enumerate(self._states.tolist()):
            path = self.path(row)
            if path is None or tuple(before) == file_facts.state_of(str(path)):
                continue
            if file_facts.examine(self.kind, path).sha256 != self.hash_of(row).hex():
                changed.append(str(path))
        if changed:
            raise DataError(
                f"{len(changed)} files have another content than at the start, or are gone, first {changed[0]}: load "
                "the data again"
            )

    def _decode(self, row: int) -> Any:
        path = self.path(row)
        if path is None:
            raise DataError(f"row {row} has no {self.kind}")
        if self.kind == "image":
            return torch.from_numpy(decode_picture(path))
        if self.kind == "sound":
            wave, rate = decode_sound(path)
            return Sound(torch.from_numpy(wave), rate)
        return torch.from_numpy(native(read_array(path, mapped=True)))


class FileSource:
    """A row source: one rendering of the files of a modality."""

    deterministic = True
    dtype = torch.float32

    def __init__(self, files: Files, rendering: Rendering) -> None:
        wanted = RENDERINGS[files.kind]
        if not isinstance(rendering, wanted):
            raise DataError(
                f"files of the kind {files.kind!r} take a {wanted.__name__}, found a {type(rendering).__name__}"
            )
        self.files = files
        self.rendering = rendering
        self.lengths = self._lengths()
        self.spec = rendering.spec(self._example())
        self.fingerprint = key_hash([files.content(), rendering.key])
        files.readers += 1

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *example); of recordings of varying length, the longest."""
        return (len(self.files), *self.spec.shape)

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The rendered files of some rows.

        Raises:
            DataError: a file cannot be read; names it.
        """
        rendered: Input = self.rendering.apply_all(self.files.decoded(rows.tolist()))
        return rendered

    def quick(self, rows: Int64[Tensor, " B"]) -> bool:
        """Whether these rows are in memory at the size that the network reads, so that no worker is worth it."""
        kept, rendering = self.files.kept, self.rendering
        if kept is None or not isinstance(rendering, PictureRendering):
            return False
        wanted = rows.tolist()
        return all(self.files.shape(row)[1:] == rendering.size for row in wanted) and all(kept.there(wanted))

    def in_parts(self, rows: Int64[Tensor, " B"], view: Int64[Tensor, " B"], parts: Parts) -> "FileParts":
        """The same files, of which these rows are parts of their pictures in these views."""
        return FileParts(self, rows, view, parts)

    def rendered(self, rendering: Rendering) -> "FileSource":
        """The same files in another rendering; a batch that reads both decodes them once."""
        return FileSource(self.files, rendering)

    def name_of(self, row: int) -> str:
        """The file of a row, for errors."""
        return str(self.files.path(row))

    def row_key(self, row: int) -> bytes:
        """Equal for files of equal content."""
        return self.files.hash_of(row)

    def contents(self) -> NDArray[np.int64]:
        """A number for each row, equal for files of equal content; -1 for a row without a file."""
        return self.files.contents()

    def check_unchanged(self) -> None:
        """Check that the files are as at the start.

        Raises:
            DataError: a file has another content, or is gone.
        """
        self.files.check_unchanged()

    def _lengths(self) -> Tensor | None:
        """Lengths in samples or frames; None where all are equal."""
        rendering = self.rendering
        if not isinstance(rendering, SoundRendering) or rendering.seconds is not None:
            return None
        return torch.tensor([self._length(row, rendering) for row in range(len(self.files))], dtype=torch.int64)

    def _length(self, row: int, rendering: SoundRendering) -> int:
        shape = self.files.shape(row)
        if not shape:
            return 0
        samples = round(shape[0] * rendering.rate / shape[1])
        return samples if rendering.kind == "wave" else 1 + samples // rendering.hop

    def _example(self) -> tuple[int, ...]:
        if isinstance(self.rendering, ArrayRendering):
            return next((self.files.shape(row) for row in range(len(self.files)) if self.files.path(row)), ())
        assert isinstance(self.rendering, PictureRendering | SoundRendering)
        shape: tuple[int, ...] = self.rendering.shape
        return shape if self.lengths is None else (*shape[:-1], int(self.lengths.max()))


class FileParts:
    """A row source for one batch: parts of whole pictures, each resized to the size of the rendering.

    Rows of view 0 are rendered as they are. Parts are cut out of the decoded file, so that a small one is sharp.
    """

    def __init__(self, source: FileSource, rows: Tensor, view: Tensor, parts: Parts) -> None:
        self.source, self.rows, self.view, self.parts = source, rows, view, parts
        self.shape, self.dtype, self.spec = source.shape, source.dtype, source.spec
        self.fingerprint, self.deterministic, self.name_of = source.fingerprint, True, source.name_of

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.source)

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The rendered parts of the batch's rows; of other rows, the whole pictures.

        Raises:
            DataError: a file cannot be read; names it.
        """
        rendering = self.source.rendering
        if not isinstance(rendering, PictureRendering) or not torch.equal(rows, self.rows):
            return self.source.fetch(rows)
        decoded = self.source.files.decoded(rows.tolist())
        boxes = self.parts(torch.tensor([picture.shape[1:] for picture in decoded]).float()).long().tolist()
        of_part = rendering.model_copy(update={"shortest": None})
        made = torch.empty(len(decoded), *rendering.shape, memory_format=torch.channels_last)
        for number, (picture, (top, left, height, width)) in enumerate(zip(decoded, boxes, strict=True)):
            part = picture[:, top : top + height, left : left + width]
            made[number] = of_part.apply(part) if self.view[number] else rendering.apply(picture)
        return made


class TextSource:
    """A row source: texts in memory, as the ids of a tokenizer; a row without a text holds None."""

    deterministic = True
    in_memory = True
    dtype = torch.int64

    def __init__(self, texts: Sequence[str | None], rendering: TextRendering) -> None:
        self.texts = list(texts)
        self.rendering = rendering
        self.spec: InputSpec = rendering.spec(rendering.shape)
        self.fingerprint = key_hash([self.texts, rendering.key])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.texts)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, tokens)."""
        return (len(self.texts), *self.spec.shape)

    def fetch(self, rows: Int64[Tensor, " B"]) -> Mapping[str, Tensor]:
        """Ids and mask of some rows."""
        return self.rendering.apply_all([self.texts[row] or "" for row in rows.tolist()])

    def rendered(self, rendering: Rendering) -> "TextSource":
        """The same texts by another tokenizer.

        Raises:
            DataError: it is no rendering of texts.
        """
        if not isinstance(rendering, TextRendering):
            raise DataError(f"texts take a TextRendering, found a {type(rendering).__name__}")
        return TextSource(self.texts, rendering)

    def name_of(self, row: int) -> str:
        """The beginning of a row's text, for errors."""
        return repr((self.texts[row] or "")[:40])

    def row_key(self, row: int) -> bytes:
        """Equal for equal texts."""
        return (self.texts[row] or "").encode()

    def contents(self) -> NDArray[np.int64]:
        """A number for each row, equal for equal texts; -1 for a row without a text."""
        first: dict[str, int] = {}
        return np.array(
            [-1 if text is None else first.setdefault(text, len(first)) for text in self.texts], dtype=np.int64
        )


def mapped_array(path: Path) -> Tensor:
    """An array file of which every row is an example, memory-mapped.

    Raises:
        DataError: it is not a readable `.npy` file; names it.
        ShapeError: it has fewer than two dimensions.
    """
    array = read_array(path, mapped=True)
    if array.ndim < 2:
        raise ShapeError(f"{path}: has shape {array.shape}; wanted (examples, ...), at least two dimensions")
    if not array.dtype.isnative or array.dtype == np.float64:
        array = native(array).astype(np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """Shapes as one array, filled up with -1."""
    longest = max((len(shape) for shape in shapes), default=0)
    return np.array([[*shape, *[-1] * (longest - len(shape))] for shape in shapes], dtype=np.int64).reshape(
        len(shapes), longest
    )
