"""Files of a tar archive, or of the folder that it was unpacked to, by name; nothing is extracted to a disk."""

import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from crossdistill.errors import DataError

MOST_BYTES = 2**30
"""Largest file that is read of an archive."""


def read_files(source: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The content of the files `folder/NAME` of an archive, or of `NAME` in the unpacked folder `source`.

    Raises:
        DataError: a file is missing or too large; the archive is truncated, or holds a path outside of itself or a
            link (names it).
    """
    if source.is_dir():
        return _of_folder(source, names)
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r:*") as tar:
            for member in tar:
                path = _inside(source, member)
                name = wanted.get(path)
                stream = tar.extractfile(member) if name is not None else None
                if name is None or stream is None:
                    continue
                if member.size > MOST_BYTES:
                    raise DataError(
                        f"{source}: {path} has {member.size:,} bytes; such a file has at most {MOST_BYTES:,}"
                    )
                found[name] = stream.read()
                if len(found[name]) != member.size:
                    raise DataError(_truncated(source, f"{path} has {len(found[name]):,} of {member.size:,} bytes"))
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(_truncated(source, str(error))) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{source}: lacks {folder}/{missing[0]}; wanted {len(names)} files of the official archive: "
            f"{', '.join(names)}. It is another archive, or truncated: download it again"
        )
    return found


def _inside(source: Path, member: tarfile.TarInfo) -> str:
    """The path of a member, which neither leaves the archive nor is a link."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.name:
        raise DataError(f"{source}: holds the path {member.name[:100]!r}, outside of it; take the official archive")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{source}: {member.name[:100]!r} is a link or a device; take the official archive")
    return str(path)


def _of_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: lacks {missing[0]}; wanted {', '.join(names)}, as in the official archive")
    large = [name for name in names if os.path.getsize(folder / name) > MOST_BYTES]
    if large:
        raise DataError(f"{folder / large[0]}: such a file has at most {MOST_BYTES:,} bytes")
    return {name: (folder / name).read_bytes() for name in names}


def _truncated(source: Path, cause: str) -> str:
    return f"{source}: truncated, or not a tar archive: {cause}; download it again"
