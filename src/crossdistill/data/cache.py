"""The cache folder: built data sets, each stored under a hash of the settings and code that built it."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from crossdistill.errors import StorageError
from crossdistill.runtime.files import read_json, remove_folder, sweep, temporary_folder

CACHE_VARIABLE = "CROSSDISTILL_CACHE"
MANIFEST = "entry.json"
HASHED_BYTES = 64 * 2**20
"""Files up to this size are verified by hash on every opening, larger ones by size."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache: name, path, size in bytes, and the settings that it was built with."""

    name: str
    path: Path
    size_bytes: int
    recipe: Mapping[str, Any]


def cache_folder() -> Path:
    """`CROSSDISTILL_CACHE`, or else the user's cache folder on this system; does not create it."""
    value = os.environ.get(CACHE_VARIABLE)
    return Path(value).expanduser() if value else platformdirs.user_cache_path("crossdistill")


def entries() -> list[CacheEntry]:
    """All entries of the cache, sorted by name."""
    folder = cache_folder()
    listed = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if manifest.parent.name.startswith("."):
            continue
        content = _read_manifest(manifest.parent)
        if content is not None:
            listed.append(_entry(manifest.parent, content))
    return listed


def find(name: str, recipe: Mapping[str, Any]) -> CacheEntry | None:
    """The entry of these settings; None if there is none, or if files are missing or damaged."""
    path = _path(name, recipe)
    content = _read_manifest(path)
    return _entry(path, content) if content is not None and _damage(path, content) is None else None


def keep(name: str, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of these settings; `build` fills it if it is missing or damaged.

    It is built in a temporary folder and renamed, so it is either complete or absent. If two processes build it at the
    same time, the first to finish is kept.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    path = _path(name, recipe)
    content = _read_manifest(path)
    damage = "it has no readable manifest" if content is None else _damage(path, content)
    if damage is None:
        return path
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ".*-*.*")
        if path.exists():
            log.warning("cache: %s is damaged (%s); it is built again", path, damage)
            remove_folder(path)
        work = temporary_folder(path)
    try:
        with _storing(path):
            build(work)
            files = {file.name: _describe(file) for file in sorted(work.iterdir())}
            manifest = {"name": name, "recipe": recipe, "files": files}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            try:
                work.rename(path)
            except OSError:
                # Another process was faster, and built the same.
                if not (path / MANIFEST).is_file():
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_key(paths: Iterable[Path]) -> dict[str, Any]:
    """A key for source files: their names and content; for files above `HASHED_BYTES`, size and modification time."""
    digest = hashlib.sha256()
    count = 0
    for path in paths:
        count += 1
        status = path.stat()
        large = status.st_size > HASHED_BYTES
        state = f"{status.st_size} {status.st_mtime_ns}" if large else file_digest(path)
        digest.update(f"{path.name} {state};".encode())
    return {"files": count, "sha256": digest.hexdigest()}


@cache
def code_key(folder: Path = Path(__file__).parent) -> str:
    """SHA-256 of the code that makes data: every Python file of this package.

    It is a part of each entry's key, so data built by another version of the code are never reused. A data set that is
    rebuilt with equal content keeps its fingerprint, and therefore its banks.
    """
    return str(content_key(sorted(folder.rglob("*.py")))["sha256"])


def digest_of(path: Path) -> str:
    """SHA-256 of the content of an entry's folder, from its manifest."""
    content = _read_manifest(path)
    assert content is not None, path
    return hashlib.sha256(json.dumps(content["files"], sort_keys=True).encode()).hexdigest()


def _path(name: str, recipe: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{name}-{key[:12]}"


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_digest(file)}


def _entry(path: Path, content: Mapping[str, Any]) -> CacheEntry:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return CacheEntry(str(content["name"]), path, size, content["recipe"])


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = read_json(path / MANIFEST)
        described = content["files"].values()
        valid = all(type(file["bytes"]) is int and isinstance(file["sha256"], str) for file in described)
        return content if valid and isinstance(content["name"], str) and isinstance(content["recipe"], dict) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _damage(path: Path, content: Mapping[str, Any]) -> str | None:
    for name, wanted in content["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != wanted["bytes"]:
            return f"{name} has {size:,} bytes, wanted {wanted['bytes']:,}"
        if size <= HASHED_BYTES and file_digest(file) != wanted["sha256"]:
            return f"{name} has another content than was written"
    return None


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cache: {path} could not be written: {error}; set {CACHE_VARIABLE} to a writable folder with free space"
        ) from error
