"""One holder at a time among processes and machines that share a folder; a dead holder is succeeded.

The lock is a lease of `filelock`: a small file that names its holder, made and taken over atomically on every shared
file system, and refreshed by a thread of the holder. This module adds what a run needs: a holder that can be printed,
and the rule that a live process of this machine keeps its lock however long it is suspended.
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
"""A holder on another machine whose lock was watched for so long without a refresh is taken for dead, seconds."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lock: machine and process, and the time since its last refresh, seconds."""

    machine: str
    process: int
    silent_s: float
    here: bool

    def __str__(self) -> str:
        """As errors and progress name it; of another machine nothing is known but its silence."""
        free = "" if self.here else f" (free once it is silent for {STALE_S:.0f} s)"
        return f"process {self.process} on {self.machine}, heard of {self.silent_s:.0f} s ago{free}"


class Lock:
    """The lock at a path, which is a file while the lock is held.

    A second `Lock` of the same path excludes the first one, in the same process too.
    """

    def __init__(self, path: Path, *, beat_s: float | None = None, stale_s: float | None = None) -> None:
        self.path = path
        self._beat_s = BEAT_S if beat_s is None else beat_s
        self._stale_s = STALE_S if stale_s is None else stale_s
        self._lease = self._new()
        self._watching = self._lease
        self.lost = False
        """Whether another process took the lock over since, because this one did not refresh it; known on release."""

    def _new(self) -> SoftFileLease:
        # One thread may release what another one acquired.
        return SoftFileLease(
            self.path, lease_duration=self._stale_s, heartbeat_interval=self._beat_s, thread_local=False
        )

    def acquire(self) -> bool:
        """Take the lock if it is free; whether this process holds it now.

        A dead holder of this machine is succeeded at once. A silent one of another machine is watched until it was
        silent for `stale_s` by the clock of this process, since clocks of machines differ: over several calls, or in
        this one where its file is that old already. So is a dead process of this machine that its parent has not
        waited for.

        Raises:
            StorageError: the folder of the lock cannot be written.
        """
        if self._lease.is_locked:
            return False
        holder = self.holder()
        lives_here = holder is not None and holder.here
        # A lease object takes over by age only what it saw before: a new one leaves a suspended process its lock.
        self._lease = self._new() if lives_here else self._watching
        if self._taken(0.0):
            return True
        if lives_here or self._silent_s() < self._stale_s:
            return False
        watch = self._stale_s + self._beat_s
        warnings.warn(
            f"{self.path.parent} was left by {holder or 'a process that was killed'}; "
            f"it is free if nothing refreshes its lock for {watch:.0f} s more",
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
        return True

    def release(self) -> None:
        """Give it up, which removes the file. Nothing happens where it is not held."""
        if self._lease.is_locked:
            owner = self._lease.owner
            self.lost = owner is None or owner.token != self._lease.token
        self._lease.release()

    close = release

    def holder(self) -> Holder | None:
        """The process that holds it now: None when no live process does."""
        owner = self._lease.owner
        if owner is None:
            return None
        here = owner.hostname == _host()
        if here and not began(owner.pid):
            return None
        return Holder(owner.hostname.partition("?pidns-")[0], owner.pid, self._silent_s(), here)

    def _silent_s(self) -> float:
        """Seconds since the file was refreshed, by the clocks of two machines if need be; 0 without a file."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return 0.0

    @contextmanager
    def held(self, waiting: Callable[[Holder], None] | None = None, every_s: float = 0.5) -> Iterator[None]:
        """Hold it in a block; waits for it as long as it takes, and says once for whom."""
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
    """How `filelock` names this machine, and the container in it."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "lock") as lease:
        owner = lease.owner
    return "" if owner is None else owner.hostname


def machine() -> str:
    """This machine since it was started, and this container in it: where a process number means the same process."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node()}/{boot}/{space}"


def began(process: int) -> str:
    """When a process of this machine began, as the system tells it; empty when it is no more (or a dead child).

    Process numbers are used again, so the number alone does not name a process.
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
