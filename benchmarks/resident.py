"""Memory of a process: its peak, and the part that is private to it; child processes for measuring."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_S = 0.01


def child(file: str, *arguments: str) -> dict[str, Any]:
    """Run a script with arguments in a child process; returns the JSON of its last line."""
    done = subprocess.run([sys.executable, file, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_mb() -> float:
    """Peak of the resident memory of this process, in MB (Linux: VmHWM)."""
    return _status("VmHWM")


def resident_mb() -> float:
    """Resident memory of this process, in MB (Linux: VmRSS)."""
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


def private_mb() -> float:
    """Resident memory of this process that is not backed by a file, in MB (Linux: RssAnon).

    `Private_Dirty` would include pages of mapped files that are not yet written to disk.
    """
    return _status("RssAnon")


def greatest_private(work: Callable[[], object]) -> float:
    """The peak of private memory during a call, in MB."""
    done, samples = threading.Event(), [private_mb()]

    def look() -> None:
        while not done.wait(POLL_S):
            samples.append(private_mb())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(samples)
