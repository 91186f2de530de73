"""Atomic writing of files and folders: after a kill or on a full disk, the old or the new content is complete."""

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
"""Age in seconds after which an incomplete folder of another machine is attributed to a killed process."""
SEAL = "sha256"
"""Key in a sealed file that holds the hash of all its other keys."""

NO_FILE = "there is no such file"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends without an exception.

    Raises:
        StorageError: the disk is full or the folder not writable; a file at `path` is intact.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With the umask's permissions, unlike files of `tempfile`.
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
    """Yield a temporary folder beside `path`, which becomes `path` when the block ends without an exception.

    If another process made `path` first, its folder stays and this one is removed: both are complete.

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
    """Make an empty folder beside `path`, with the umask's permissions and a name that `sweep` recognises.

    Raises:
        OSError: the parent is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    return temporary


def remove_folder(path: Path) -> None:
    """Remove a folder atomically: other processes see all of it, or nothing.

    Raises:
        OSError: the folder does not exist, or its parent is not writable.
    """
    aside = temporary_folder(path)
    try:
        path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove incomplete folders of dead processes; those of other machines after a day."""
    for path in folder.glob(pattern):
        if path.is_dir() and _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A path beside `path` whose name identifies this process."""
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
    """Write JSON atomically; NaN is refused, since it is not valid JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file whose outermost value has this type.

    Raises:
        ValueError: the file cannot be read, is not JSON, or holds a value of another type; states which.
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
    """Read a file of `write_sealed`; a file without a hash, from an earlier version, is not verified.

    Raises:
        ValueError: the file cannot be read, or differs from its hash; states which.
    """
    value: dict[str, Any] = read_json(path)
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise ValueError("its content does not match its hash")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    # Hash the values as JSON restores them: tuples become lists, keys become text.
    return key_hash(json.loads(json.dumps(value)))


def reserve(file: int, size: int) -> None:
    """Allocate the disk space of an open file of zeros; where that is impossible, check the free space.

    Raises:
        OSError: the disk has not enough space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    # macOS cannot allocate space without writing.
    free = os.fstatvfs(file)
    if free.f_bavail * free.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flush(file: int) -> None:
    """Flush the written data of an open file to the disk."""
    getattr(os, "fdatasync", os.fsync)(file)


def file_fault(path: Path, *, links: bool = True) -> str | None:
    """The reason why a path cannot be read as a regular file, without opening it; None if it can.

    Pipes, sockets and devices are refused, since reading them may block or never end. Without `links`, a symbolic link
    is refused too: it could lead out of an untrusted folder.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if not links:
                return "is a symbolic link, which may lead out of this folder; replace it by the file itself"
            status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return NO_FILE
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError:
        return "is not a valid name of a file"
    if stat.S_ISREG(status.st_mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file"


def storage_error(path: Path, error: Exception) -> StorageError:
    """The error for a file or folder that could not be written, with the free space of its disk."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    free = next((shutil.disk_usage(folder).free for folder in path.parents if folder.is_dir()), 0)
    return StorageError(
        f"could not write {path}: {reason} ({free / 2**20:,.0f} MB are free there); everything written before is "
        "intact. Free some space and go on with --resume, or choose another folder with --out"
    )
