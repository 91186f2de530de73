"""Writing so that a kill or a full disk at any moment leaves either the old or the new, never half of it."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from crossdistill.errors import StorageError
from crossdistill.runtime.hashing import key_hash
from crossdistill.runtime.lock import began, machine

ABANDONED_S = 24 * 3600
"""Age in seconds at which a half-made folder of another machine is taken for the remains of a killed process."""
SEAL = "sha256"
"""Key of a sealed file: the hash of all its other keys."""

NO_FILE = "there is no such file"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its place when the block ends without an exception.

    Raises:
        StorageError: the disk is full or the folder not writable; what was at `path` is intact.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile's, with the permissions that the umask gives.
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which becomes `path` when the block ends without an exception.

    If another process made `path` first, that one stays and this one is dropped: both are complete.

    Raises:
        StorageError: the disk is full or the parent not writable; nothing is left behind.
    """
    try:
        temporary = temporary_folder(path)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except (OSError, SafetensorError) as error:
        raise storage_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_folder(path: Path) -> Path:
    """A new, empty folder beside `path`, with the permissions that the umask gives; `sweep` knows who made it.

    Raises:
        OSError: the parent is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    return temporary


def remove_folder(path: Path) -> None:
    """Remove a folder as a whole: other processes see all of it, or nothing.

    Raises:
        OSError: it is not there, or its parent is not writable.
    """
    aside = temporary_folder(path)
    try:
        path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the half-made folders of processes that are dead; those of other machines once they are a day old."""
    for path in folder.glob(pattern):
        if path.is_dir() and _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A path beside `path` whose name says which process makes it."""
    return path.parent / f".{path.name}.{_maker(os.getpid())}-{secrets.token_hex(4)}.tmp"


def _maker(process: int) -> str:
    return f"{hashlib.sha256(machine().encode()).hexdigest()[:8]}-{process}-{began(process)}"


def _abandoned(path: Path) -> bool:
    named = re.search(r"\.(([0-9a-f]{8})-(\d+)-\w+)-[0-9a-f]{8}\.tmp$", path.name)
    if named is not None and _maker(0).startswith(named[2]):
        return named[1] != _maker(int(named[3]))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, since no other reader takes it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file whose outermost value is of this kind.

    Raises:
        ValueError: it cannot be read, is no JSON, or holds another kind of value; says which.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, kind):
        raise ValueError(f"wanted a JSON {kind.__name__}, found {type(value).__name__}")
    return value


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a hash of its content."""
    write_json(path, {**value, SEAL: _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote; a file without a hash, as earlier versions wrote it, is taken as it is.

    Raises:
        ValueError: it cannot be read, or is not what was written; says which.
    """
    value: dict[str, Any] = read_json(path)
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise ValueError("its content is not what was written")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    # As it comes back from a file: lists for tuples, text for keys.
    return key_hash(json.loads(json.dumps(value)))


def reserve(file: int, size: int) -> None:
    """Take the room of an open file of zeros now, so that a full disk is met here; at least look whether it is there.

    Raises:
        OSError: there is none.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    # macOS cannot take it without writing.
    free = os.fstatvfs(file)
    if free.f_bavail * free.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flush(file: int) -> None:
    """Bring what was written to an open file to the disk."""
    getattr(os, "fdatasync", os.fsync)(file)


def file_fault(path: Path, *, links: bool = True) -> str | None:
    """Why a path cannot be read as a file, without opening it: what waits for a writer or never ends is none.

    Without `links` a symbolic link is refused too: it would lead out of a folder that came from elsewhere.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            if not links:
                return "is a symbolic link, which is not followed out of this folder; put the file itself there"
            found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return NO_FILE
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError:
        return "is no name of a file"
    if stat.S_ISREG(found.st_mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file"


def storage_error(path: Path, error: Exception) -> StorageError:
    """The error for a file or folder that could not be written, with the free space of its disk."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    free = next((shutil.disk_usage(folder).free for folder in path.parents if folder.is_dir()), 0)
    return StorageError(
        f"could not write {path}: {reason} ({free / 2**20:,.0f} MB are free there); everything written before is "
        "intact. Free some space and go on with --resume, or choose another folder with --out"
    )
