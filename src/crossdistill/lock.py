"""One holder at a time among processes and machines that share a folder; a holder that dies is succeeded.

Renaming a folder is atomic on every shared file system, and none takes the place of a folder that holds something. So a
lock is a folder of numbered generations, each with its holder's name: who puts the next number in its place holds the
lock. It does so only once the newest generation was given up, or its holder has died or has not been heard of for long.
Two successors race for one `rename`, and exactly one of them wins. The last holder removes the folder, oldest
generation first; a process that looked before the removal and makes its number after it finds the rival's generation
beside its own, and backs off.
"""

import errno
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import StorageError

BEAT_S = 5.0
STALE_S = 60.0
"""A holder on another machine that has not been heard of for so long is taken for dead, seconds."""

TRIES = 10
HOLDER, GIVEN_UP = "holder.json", "given-up"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: machine and process, and how long ago it was last heard of, seconds."""

    machine: str
    process: int
    silent_s: float

    def __str__(self) -> str:
        """For people; of another machine nothing is known but its silence."""
        free = "" if self.machine == machine() else f" (free once it is silent for {STALE_S:.0f} s)"
        return f"process {self.process} on {self.machine.partition('/')[0]}, heard of {self.silent_s:.0f} s ago{free}"


class Lock:
    """The lock at a path, which is a folder while the lock is held.

    It is not re-entrant: a process that holds it and asks again waits for itself.
    """

    def __init__(self, path: Path, *, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> None:
        self.path = path
        self._beat_s, self._stale_s = beat_s, stale_s
        self._mine: Path | None = None
        self._stop = threading.Event()

    def acquire(self) -> bool:
        """Take the lock if nobody holds it; whether it is ours now.

        Raises:
            StorageError: the folder cannot be written.
        """
        for _ in range(TRIES):
            try:
                mine = self._next()
            except FileNotFoundError:
                # Its last holder removed the folder between our two steps.
                continue
            except OSError as error:
                raise StorageError(
                    f"could not write {self.path}: {error.strerror or error}; everything written before is intact. "
                    "Free some space and go on with --resume, or choose another folder with --out"
                ) from error
            break
        else:
            return False
        if mine is None:
            return False
        self._mine = mine
        self._stop.clear()
        threading.Thread(target=self._beat, args=(mine / HOLDER, self._stop), daemon=True).start()
        return True

    def _next(self) -> Path | None:
        """Make the next generation; None when another one is held."""
        self.path.mkdir(parents=True, exist_ok=True)
        newest = self._newest()
        if newest is not None and self._held(newest):
            return None
        mine = self.path / f"{int(newest.name) + 1 if newest else 1:06d}"
        made = self.path / f".{mine.name}-{os.getpid()}-{threading.get_ident()}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        me = {"machine": machine(), "process": os.getpid(), "began": began(os.getpid())}
        (made / HOLDER).write_text(json.dumps(me))
        try:
            made.rename(mine)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            # Another process made that number: a folder with something in it is not replaced.
            return None
        if any(self._held(other) for other in self._generations() if other != mine):
            shutil.rmtree(mine, ignore_errors=True)
            return None
        return mine

    def release(self) -> None:
        """Give it up, and remove its folder where no other process has it."""
        self._stop.set()
        mine, self._mine = self._mine, None
        if mine is None:
            return
        if self._newest() != mine:
            with suppress(OSError):
                (mine / GIVEN_UP).touch()
            return
        for generation in self._generations():
            shutil.rmtree(generation, ignore_errors=True)
        # What was killed while it made its number.
        for left in self.path.glob(".*-*"):
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            self.path.rmdir()

    close = release

    def holder(self) -> Holder | None:
        """Who holds it now: None when nobody does."""
        newest = self._newest()
        if newest is None or not self._held(newest):
            return None
        who = _who(newest)
        return Holder(who.machine, who.process, self._silent(newest))

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

    def _newest(self) -> Path | None:
        return next(reversed(self._generations()), None)

    def _generations(self) -> list[Path]:
        found = [path for path in self.path.glob("[0-9]*") if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))

    def _held(self, generation: Path) -> bool:
        if (generation / GIVEN_UP).exists() or not (generation / HOLDER).exists():
            # It comes with its holder's name: without one, its holder was killed while it gave it up.
            return False
        who = _who(generation)
        if who.machine == machine():
            # Here the system itself knows; being slow is no reason to be succeeded.
            return began(who.process) == who.began
        return self._silent(generation) < self._stale_s

    def _silent(self, generation: Path) -> float:
        """Seconds since the holder was heard of, in the file system's own time: clocks of machines differ."""
        probe = self.path / f".now-{os.getpid()}-{threading.get_ident()}"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
            beat = generation / HOLDER
            return max(0.0, now - (beat if beat.exists() else generation).stat().st_mtime)
        except OSError:
            return 0.0

    def _beat(self, file: Path, stop: threading.Event) -> None:
        while not stop.wait(self._beat_s):
            with suppress(OSError):
                os.utime(file)


@dataclass(frozen=True, slots=True)
class _Process:
    machine: str
    process: int
    began: str


def _who(generation: Path) -> _Process:
    try:
        found = json.loads((generation / HOLDER).read_text())
        return _Process(str(found["machine"]), int(found["process"]), str(found["began"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Damaged: then its age alone counts.
        return _Process("an unknown machine", 0, "")


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
