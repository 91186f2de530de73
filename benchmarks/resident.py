"""Memory of a process of its own: its peak, and what of it is private to it."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_S = 0.01


def child(file: str, *arguments: str) -> dict[str, Any]:
    """Run this script again with arguments, in a process of its own; gives the JSON of its last line."""
    done = subprocess.run([sys.executable, file, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mb() -> float:
    """Most memory that this process has held so far, in MB (Linux: VmHWM)."""
    return _status("VmHWM")


def resident_mb() -> float:
    """What this process holds now, in MB."""
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


def private_mb() -> float:
    """Of what this process holds now, what no file stands behind, in MB (Linux: RssAnon).

    Not `Private_Dirty`, which also counts pages of mapped files that the system has yet to write to disk.
    """
    return _status("RssAnon")


def greatest_private(work: Callable[[], object]) -> float:
    """The greatest private memory while this works, in MB."""
    done, seen = threading.Event(), [private_mb()]

    def look() -> None:
        while not done.wait(POLL_S):
            seen.append(private_mb())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(seen)
