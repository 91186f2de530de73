"""Tar shards as WebDataset writes them, read by row number: an index of the offsets of their files, and decoders."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from crossdistill.data.rendering import Sound
from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.hashing import file_hash, key_hash

MOST_BYTES = 2**30
"""Largest file in a shard."""


class TarShards:
    """The samples of several tar files, a mapping of extension to decoded value each; files of one sample share a name.

    Raises:
        DataError: a shard cannot be read, is compressed, or holds a sample twice.
    """

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.paths = tuple(paths)
        self._files: dict[tuple[int, int], int] = {}
        places: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
        for number, path in enumerate(self.paths):
            for name, offset, size in _files_in(path, where):
                key, _, extension = _split_name(name)
                extensions = places.setdefault((number, key), {})
                if extension in extensions:
                    raise DataError(f"{where}: {path} holds {name!r} twice")
                extensions[extension] = (offset, size)
        if not places:
            raise DataError(f"{where}: {', '.join(map(str, self.paths[:3])) or 'no shards'}: no files with extensions")
        self.extensions = tuple(dict.fromkeys(name for sample in places.values() for name in sample))
        # Arrays, which forked workers share, unlike Python's objects.
        self._keys = np.array([key for _, key in places])
        self._shards = np.array([number for number, _ in places], dtype=np.int32)
        self._at: dict[str, Int64[np.ndarray, "N 2"]] = {
            name: np.array([sample.get(name, (-1, 0)) for sample in places.values()], dtype=np.int64)
            for name in self.extensions
        }

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return _Sample(self, row)

    def has(self, extension: str) -> NDArray[np.bool_]:
        """The samples that have a file of this extension (N,)."""
        found: NDArray[np.bool_] = self._at[extension][:, 0] >= 0
        return found

    def value(self, row: int, extension: str) -> Any:
        """One decoded file of a sample.

        Raises:
            DataError: the file cannot be decoded; names it.
        """
        offset, size = self._at[extension][row].tolist()
        if offset < 0:
            raise DataError(f"{self.name_of(row)} has no .{extension}")
        if size > MOST_BYTES:
            raise DataError(f"{self.name_of(row)}.{extension} has {size:,} bytes; at most {MOST_BYTES:,}")
        content = os.pread(self._file(int(self._shards[row])), size, offset)
        if len(content) != size:
            raise DataError(f"{self.name_of(row)}.{extension} is truncated: {len(content):,} of {size:,} bytes")
        decode = DECODERS.get(extension.rpartition(".")[2].lower())
        if decode is None:
            raise DataError(f"{self.name_of(row)}.{extension}: no decoder; there are {', '.join(DECODERS)}")
        try:
            return decode(content)
        except MissingExtraError:
            raise
        except Exception as error:  # decoders raise anything on damaged files
            text = " ".join(str(error).split())
            raise DataError(f"{self.name_of(row)}.{extension} cannot be decoded: {text}") from error

    def name_of(self, row: int) -> str:
        """Shard and name of a sample."""
        return f"{self.paths[self._shards[row]].name}: {self._keys[row]}"

    def key(self) -> str:
        """A hash of the content of all shards."""
        return key_hash([file_hash(path) for path in self.paths])

    def _file(self, shard: int) -> int:
        # A file of each process: they may be forked, and the place in a file would be shared.
        key = (os.getpid(), shard)
        if key not in self._files:
            self._files[key] = os.open(self.paths[shard], os.O_RDONLY)
        return self._files[key]


class _Sample(Mapping[str, Any]):
    """The files of one sample, decoded when they are read."""

    def __init__(self, shards: TarShards, row: int) -> None:
        self._shards, self._row = shards, row

    def __getitem__(self, extension: str) -> Any:
        return self._shards.value(self._row, extension)

    def __iter__(self) -> Any:
        return iter(self._shards.extensions)

    def __len__(self) -> int:
        return len(self._shards.extensions)

    def __contains__(self, extension: object) -> bool:
        return extension in self._shards.extensions


def shard_paths(paths: Any, where: str) -> list[Path]:
    """Shards from a path with wildcards, a folder, or a list of paths; sorted by name.

    Raises:
        DataError: there is none.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[Path] = []
    for one in map(Path, given):
        if one.is_dir():
            found += sorted(one.glob("*.tar"))
        elif any(sign in one.name for sign in "*?["):
            found += sorted(one.parent.glob(one.name))
        else:
            found.append(one)
    if not found:
        raise DataError(f"{where}: no shards in {', '.join(map(str, given))}; wanted *.tar")
    return found


def _files_in(path: Path, where: str) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file of an uncompressed tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            return [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    except tarfile.ReadError as error:
        raise DataError(
            f"{where}: {path} is no plain tar file ({error}); a compressed one has no offsets: unpack it"
        ) from error
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror or error}") from error


def _split_name(name: str) -> tuple[str, str, str]:
    """Folder and name up to the first dot of a file's own name, and the rest, as WebDataset splits them."""
    folder, slash, file = name.rpartition("/")
    key, dot, extension = file.partition(".")
    return folder + slash + key, dot, extension


def _picture(content: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading pictures", "pillow", "image") from error
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        return picture.copy()


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _sound(content: bytes) -> Any:
    import torch

    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("reading recordings", "soundfile", "audio") from error
    wave, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return Sound(torch.from_numpy(wave.mean(1)), int(rate))


def _text(content: bytes) -> str:
    return content.decode("utf-8")


DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "bmp"), _picture),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), _sound),
    **dict.fromkeys(("cls", "cls2", "index", "id"), int),
    "npy": _array,
    "json": json.loads,
    "txt": _text,
}
"""How to read a file, by the last part of its extension."""
