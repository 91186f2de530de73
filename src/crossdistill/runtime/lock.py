"""A lock with one holder at a time among processes and machines that share a folder; a dead holder is replaced.

The lock is a lease of `filelock`: a small file that names its holder, made and taken over atomically on every shared
file system, and refreshed by a thread of the holder. This module adds a printable holder, and the rule that a live
process of this machine keeps its lock even if it is suspended for long.
"""

import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import SoftFileLease, Timeout

from crossdistill.errors import StorageError

BEAT_S = 5.0
"""Seconds between two refreshes."""
STALE_S = 60.0
"""Seconds without an observed refresh after which a holder on another machine is considered dead."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lock: machine and process, and the time since its last refresh, seconds."""

    machine: str
    process: int
    silent_s: float
    here: bool

    def __str__(self) -> str:
        """Text for errors and progress; for another machine, with the time after which the lock is free."""
        free = "" if self.here else f" (free after {STALE_S:.0f} s without a refresh)"
        return f"process {self.process} on {self.machine}, last refresh {self.silent_s:.0f} s ago{free}"


class Lock:
    """The lock at a path, where a file exists while the lock is held.

    A second `Lock` of the same path excludes the first one, in the same process too.
    """

    def __init__(self, path: Path, *, beat_s: float | None = None, stale_s: float | None = None) -> None:
        self.path = path
        self._beat_s = BEAT_S if beat_s is None else beat_s
        self._stale_s = STALE_S if stale_s is None else stale_s
        self._lease = self._new()
        self._watching = self._lease
        self.lost = False
        """Whether another process took over the lock, because this one did not refresh it; set on release."""

    def _new(self) -> SoftFileLease:
        # One thread may release what another one acquired.
        return SoftFileLease(
            self.path, lease_duration=self._stale_s, heartbeat_interval=self._beat_s, thread_local=False
        )

    def acquire(self) -> bool:
        """Take the lock if it is free; returns whether this process took it.

        A dead holder on this machine is replaced immediately. A holder on another machine is replaced after `stale_s`
        seconds without a refresh by the clock of this process, since clocks of machines differ. This time passes over
        several calls, or within this one if the file is already that old. The same holds for a dead process of this
        machine that its parent has not waited for.

        Raises:
            StorageError: the folder of the lock cannot be written.
        """
        if self._lease.is_locked:
            return False
        holder = self.holder()
        lives_here = holder is not None and holder.here
        # A lease object takes over by age only a lock that it saw before, so a new one spares a suspended process.
        self._lease = self._new() if lives_here else self._watching
        if self._taken(0.0):
            return True
        if lives_here or self._silent_s() < self._stale_s:
            return False
        watch = self._stale_s + self._beat_s
        warnings.warn(
            f"{self.path.parent} is locked by {holder or 'a killed process'}; "
            f"the lock is taken over after {watch:.0f} s without a refresh",
            RuntimeWarning,
            stacklevel=2,
        )
        return self._taken(watch)

    def _taken(self, wait_s: float) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lease.acquire(timeout=wait_s, poll_interval=min(1.0, self._stale_s / 10))
        except Timeout:
            return False
        except OSError as error:
            raise StorageError(
                f"could not write {self.path}: {error.strerror or error}; everything written before is intact. "
                "Free some space and go on with --resume, or choose another folder with --out"
            ) from error
        self._sweep()
        return True

    def _sweep(self) -> None:
        """Remove files of processes of this machine that were killed while they took the lock over."""
        for path in self.path.parent.glob(f"{self.path.name}.*.*.*"):
            process = path.name.split(".")[-2]
            with suppress(OSError, UnicodeDecodeError):
                text = path.read_text(encoding="utf-8")
                if process.isdecimal() and not began(int(process)) and (not text or f"host={_host()}\n" in text):
                    path.unlink()

    def release(self) -> None:
        """Release the lock, which removes the file; without effect if it is not held."""
        if self._lease.is_locked:
            owner = self._lease.owner
            self.lost = owner is None or owner.token != self._lease.token
        self._lease.release()

    close = release

    def holder(self) -> Holder | None:
        """The process that holds the lock; None if no live process does."""
        owner = self._lease.owner
        if owner is None:
            return None
        here = owner.hostname == _host()
        if here and not began(owner.pid):
            return None
        return Holder(owner.hostname.partition("?pidns-")[0], owner.pid, self._silent_s(), here)

    def _silent_s(self) -> float:
        """Seconds since the last refresh of the file, possibly by the clocks of two machines; 0 without a file."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return 0.0

    @contextmanager
    def held(self, waiting: Callable[[Holder], None] | None = None, every_s: float = 0.5) -> Iterator[None]:
        """Hold the lock in a block; waits for it without limit, and calls `waiting` once with its holder."""
        while not self.acquire():
            if waiting is not None and (holder := self.holder()) is not None:
                waiting(holder)
                waiting = None
            time.sleep(every_s)
        try:
            yield
        finally:
            self.release()


@cache
def _host() -> str:
    """The name that `filelock` gives to this machine and container."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "lock") as lease:
        owner = lease.owner
    return "" if owner is None else owner.hostname


def machine() -> str:
    """Identifier of this machine since its start, and of this container: the scope of process numbers."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node()}/{boot}/{space}"


def began(process: int) -> str:
    """Start time of a process of this machine, in the system's format; empty if it has ended (or is a dead child).

    Process numbers are reused, so the number alone does not identify a process.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in {"Z", "X"} else fields[19]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "running"
    return "running"
