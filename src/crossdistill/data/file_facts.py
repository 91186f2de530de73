"""Facts of files (content hash, shape, or why they cannot be read), kept by path, size and time of modification.

Paths are texts here: 50,000 of them as objects of `pathlib` take seconds.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import crossdistill
from crossdistill.data.array_file import read_array
from crossdistill.data.audio.any_sound import SOUND_FILES, decode_sound
from crossdistill.data.cache import cache_folder
from crossdistill.data.picture_file import PICTURE_FILES, decode_picture
from crossdistill.errors import DataError
from crossdistill.runtime.files import file_fault

log = logging.getLogger("crossdistill")

FileKind = Literal["image", "sound", "array"]
SUFFIXES: dict[FileKind, tuple[str, ...]] = {"image": PICTURE_FILES, "sound": SOUND_FILES, "array": (".npy",)}
VERSION = 1
"""Rises when a decoder gives other values, or refuses other files."""
KEPT = "files.sqlite"
WRITTEN_AT_ONCE = 4096
"""Files whose facts are written together: a write waits for the disk."""
CRASH = "its decoder ended with"
"""Beginning of the fault of a file that ended a worker."""
AT_ONCE = 64
"""Files of one request to a worker, and of one step of the progress display."""
WORKER = "crossdistill.data.facts_worker"
INLINE_S, FILE_S, BYTE_S = 4.0, 2e-4, 3e-8
"""Files are read by this process where that takes so many seconds at most, from its seconds for a file and for a byte
of it (JPEG and PNG on one core): workers take two seconds to start."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one file holds.

    `shape` is (channels, height, width) of a picture, (samples, rate in hertz) of a recording, and the shape of an
    array; `fault` is the reason why it cannot be read, without its name, or empty; `dtype` is an array's type.
    """

    sha256: str
    shape: tuple[int, ...]
    fault: str = ""
    dtype: str = ""


def examine(kind: FileKind, path: Path) -> Facts:
    """Read and decode one file.

    Raises:
        MissingExtraError: the package that reads such files is not installed.
    """
    fault = file_fault(path)
    if fault is not None:
        return Facts("", (), fault)
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if kind == "image":
            return Facts(digest, tuple(decode_picture(path).shape))
        if kind == "sound":
            wave, rate = decode_sound(path)
            return Facts(digest, (len(wave), rate))
        array = read_array(path, mapped=True)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return Facts(digest, (), "holds NaN or Inf")
        return Facts(digest, tuple(array.shape), "", str(array.dtype))
    except DataError as error:
        return Facts("", (), str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Facts("", (), f"cannot be read: {error.strerror or error}")


def facts_of(kind: FileKind, paths: Sequence[str], said: Callable[[int, int], None]) -> list[Facts]:
    """The facts of each file, from the cache where size and time of modification are as they were, or else read.

    `said` is called with the number of files that are read so far, and of all that have to be.

    Raises:
        MissingExtraError: the package that reads such files is not installed.
    """
    # As objects, 50,000 of them take as much memory as a small network.
    states = np.array([state_of(path) for path in paths], dtype=np.int64).reshape(len(paths), 2)
    kept = _Kept(cache_folder() / KEPT)
    found = kept.read(kind, paths, states)
    due = [number for number, facts in enumerate(found) if facts is None]
    size = int(states[due, 0].sum())
    reads = _inline if len(due) * FILE_S + size * BYTE_S <= INLINE_S else _by_workers
    unwritten: list[tuple[str, tuple[int, int], Facts]] = []
    done = 0
    try:
        for numbers, read in reads(kind, paths, due):
            for number, facts in zip(numbers, read, strict=True):
                found[number] = facts
                unwritten.append((paths[number], (int(states[number, 0]), int(states[number, 1])), facts))
            done += len(numbers)
            said(done, len(due))
            if len(unwritten) >= WRITTEN_AT_ONCE:
                kept.write(kind, unwritten)
                unwritten = []
    finally:
        # What was read is kept though a later file, or Ctrl-C, ends this.
        kept.write(kind, unwritten)
    return [facts for facts in found if facts is not None]


def state_of(path: str) -> tuple[int, int]:
    """Size in bytes and time of modification; of a file that is not there, zeros."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


_Read = Iterator[tuple[list[int], list[Facts]]]


def _inline(kind: FileKind, paths: Sequence[str], due: Sequence[int]) -> _Read:
    for start in range(0, len(due), AT_ONCE):
        numbers = list(due[start : start + AT_ONCE])
        yield numbers, [examine(kind, Path(paths[number])) for number in numbers]


def _by_workers(kind: FileKind, paths: Sequence[str], due: Sequence[int]) -> _Read:
    """By child processes: a decoder that crashes on a file ends one of them, and costs that file alone."""
    if due:
        # A missing package is an error of this process.
        first = list(due[:1])
        yield first, [examine(kind, Path(paths[due[0]]))]
    requests = [list(due[start : start + AT_ONCE]) for start in range(1, len(due), AT_ONCE)]
    waiting, lock, ready = iter(requests), threading.Lock(), threading.Condition()
    results: list[tuple[list[int], list[Facts]]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def serve() -> None:
        worker = _Worker(kind)
        try:
            while not stop.is_set():
                with lock:
                    numbers = next(waiting, None)
                if numbers is None:
                    break
                read = worker.examine([paths[number] for number in numbers])
                with ready:
                    results.append((numbers, read))
                    ready.notify()
        except BaseException as error:
            with ready:
                failures.append(error)
                ready.notify()
        finally:
            worker.close()

    count = min(os.cpu_count() or 1, 16, len(requests))
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in requests:
            with ready:
                ready.wait_for(lambda: bool(results or failures))
                if failures:
                    raise failures[0]
                one = results.pop(0)
            yield one
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _Worker:
    """A child process that examines files, started again after a crash."""

    def __init__(self, kind: FileKind) -> None:
        self._kind = kind
        self._process: subprocess.Popen[str] | None = None

    def examine(self, paths: Sequence[str]) -> list[Facts]:
        found: list[Facts] = []
        while len(found) < len(paths):
            rest = paths[len(found) :]
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([self._kind, list(rest)]) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass
            for _ in rest:
                line = process.stdout.readline()
                if not line.endswith("\n"):
                    code = self.close()
                    found.append(Facts("", (), f"{CRASH} {code}"))
                    break
                content = json.loads(line)
                found.append(Facts(content["sha256"], tuple(content["shape"]), content["fault"], content["dtype"]))
        return found

    def close(self) -> int:
        """End the process, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(BrokenPipeError), process:
            pass
        return process.wait()

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None:
            package = str(Path(crossdistill.__file__).parent.parent)
            path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            )
        return self._process


class _Kept:
    """A table of facts in the cache folder. What cannot be read or written there is read from the files again."""

    COLUMNS = "path TEXT, kind TEXT, version INTEGER, size INTEGER, modified INTEGER, facts TEXT"

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, kind: FileKind, paths: Sequence[str], states: NDArray[np.int64]) -> list[Facts | None]:
        found: list[Facts | None] = [None] * len(paths)
        if not self._path.is_file():
            return found
        shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as base:
                for start in range(0, len(paths), 500):
                    some = paths[start : start + 500]
                    marks = ",".join("?" * len(some))
                    wanted = f"kind=? AND version=? AND path IN ({marks})"
                    rows = base.execute(
                        f"SELECT path, size, modified, facts FROM files WHERE {wanted}", [kind, VERSION, *some]
                    )
                    known = {path: ([size, modified], facts) for path, size, modified, facts in rows}
                    for number, path in enumerate(some, start=start):
                        state, facts = known.get(path, (None, ""))
                        if state is not None and state[1] and state == states[number].tolist():
                            sha256, shape, fault, dtype = json.loads(facts)
                            # Most files share a few shapes, which are kept once.
                            shape = shapes.setdefault(tuple(shape), tuple(shape))
                            found[number] = Facts(sha256, shape, fault, dtype)
        except (sqlite3.Error, ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s): the files are read again; remove it if this stays", self._path, error)
            return [None] * len(paths)
        return found

    def write(self, kind: FileKind, rows: Sequence[tuple[str, tuple[int, int], Facts]]) -> None:
        values = [
            (path, kind, VERSION, *state, json.dumps(list(asdict(facts).values())))
            for path, state, facts in rows
            # The reason of another fault, such as a permission, may go without a change of the file.
            if state[1] and (not facts.fault or facts.fault.startswith(CRASH))
        ]
        if not values:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30)) as base, base:
                base.execute(f"CREATE TABLE IF NOT EXISTS files ({self.COLUMNS}, PRIMARY KEY (path, kind))")
                base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", values)
        except (sqlite3.Error, OSError) as error:
            log.warning("%s cannot be written (%s): the next start reads the files again", self._path, error)
