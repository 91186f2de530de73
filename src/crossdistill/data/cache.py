"""The cache folder: what was built once is kept under a key of its whole build recipe."""

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
"""Files up to this size are compared by content on every opening, larger ones by size."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache: what it holds, where, how large, and the recipe that it was built from."""

    name: str
    path: Path
    size_bytes: int
    recipe: Mapping[str, Any]


def cache_folder() -> Path:
    """`CROSSDISTILL_CACHE`, else where this system keeps the caches of a user; not created by asking."""
    value = os.environ.get(CACHE_VARIABLE)
    return Path(value).expanduser() if value else platformdirs.user_cache_path("crossdistill")


def entries() -> list[CacheEntry]:
    """Everything that is kept, by name."""
    folder = cache_folder()
    found = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if manifest.parent.name.startswith("."):
            continue
        content = _read_manifest(manifest.parent)
        if content is not None:
            found.append(_entry(manifest.parent, content))
    return found


def find(name: str, recipe: Mapping[str, Any]) -> CacheEntry | None:
    """The sound entry of this recipe; None when there is none, or when files are missing or damaged."""
    path = _path(name, recipe)
    content = _read_manifest(path)
    return _entry(path, content) if content is not None and _damage(path, content) is None else None


def keep(name: str, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of this recipe; `build` fills it when it is not there or is damaged.

    It is built in a temporary folder and renamed, so that it is there as a whole or not at all; when two processes
    build at once, the first to finish is kept.

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
                # Another process was faster: what it built is the same.
                if not (path / MANIFEST).is_file():
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_key(paths: Iterable[Path]) -> dict[str, Any]:
    """A key for source files: their names and content; of large ones (`HASHED_BYTES`) size and time of change."""
    digest = hashlib.sha256()
    count = 0
    for path in paths:
        count += 1
        status = path.stat()
        large = status.st_size > HASHED_BYTES
        seen = f"{status.st_size} {status.st_mtime_ns}" if large else file_digest(path)
        digest.update(f"{path.name} {seen};".encode())
    return {"files": count, "sha256": digest.hexdigest()}


@cache
def code_key(folder: Path = Path(__file__).parent) -> str:
    """sha256 of the code that makes data: every Python file of this package.

    It is a part of each data set's recipe, so that what another version of the code has built is never taken for what
    this version would build. One that is built again with equal content keeps its fingerprint, and with it its banks.
    """
    return str(content_key(sorted(folder.rglob("*.py")))["sha256"])


def digest_of(path: Path) -> str:
    """sha256 of a kept folder's content, from its manifest."""
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
        sound = all(type(one["bytes"]) is int and isinstance(one["sha256"], str) for one in described)
        return content if sound and isinstance(content["name"], str) and isinstance(content["recipe"], dict) else None
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
            f"cache: {path} could not be written: {error}; "
            f"set {CACHE_VARIABLE} to a folder with room that you may write to"
        ) from error
