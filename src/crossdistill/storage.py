"""Writing so that a kill or a full disk at any moment leaves either the old or the new, never half of it."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from crossdistill.errors import StorageError

NO_FILE = "there is no such file"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its place when the block ends without an exception.

    Raises:
        StorageError: the disk is full or the folder not writable; what was at `path` is intact.
    """
    handle, name = _temporary_file(path)
    os.close(handle)
    temporary = Path(name)
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
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except (OSError, SafetensorError) as error:
        raise storage_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, since no other reader takes it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_hash(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def _temporary_file(path: Path) -> tuple[int, str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: Exception) -> StorageError:
    """What a person is told when a file or folder could not be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    free = next((shutil.disk_usage(folder).free for folder in path.parents if folder.is_dir()), 0)
    return StorageError(
        f"could not write {path}: {reason} ({free / 2**20:,.0f} MB are free there); everything written before is "
        "intact. Free some space and go on with --resume, or choose another folder with --out"
    )
