"""Runs that are killed, and what of them has to be equal in the end."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MEASURED = {"seconds", "bank_seconds", "peak_memory_mb"}
"""What no two runs share: time and memory."""


def without_measures(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: without_measures(one) for name, one in value.items() if name not in {*MEASURED, "files", "sha256"}
        }
    return [without_measures(one) for one in value] if isinstance(value, list) else value


def assert_same_run(found: Path, wanted: Path) -> None:
    """Every file, bit by bit, but for time and memory; and nothing left lying about."""
    names = {str(path.relative_to(wanted)) for path in wanted.rglob("*")}
    assert {str(path.relative_to(found)) for path in found.rglob("*")} == names
    for name in sorted(names):
        one, two = found / name, wanted / name
        if name.endswith(".json") and name != "environment.json":
            assert without_measures(json.loads(one.read_text())) == without_measures(json.loads(two.read_text())), name
        elif name.endswith(".npz"):
            with np.load(one) as mine, np.load(two) as theirs:
                assert all(np.array_equal(mine[key], theirs[key]) for key in theirs.files), name
        elif name.endswith((".safetensors", "metrics.jsonl")):
            assert one.read_bytes() == two.read_bytes(), name


def forked(work: Callable[[], object]) -> int:
    """A real process that does this work; cheap, since torch is there already. Gives its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """Its exit status; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def killed_at(call: int, before: bool, work: Callable[[], object], *, folders: bool = False) -> int:
    """Kill -9 right before, or right after, the n-th time that something is made, renamed into place or removed."""

    def counted(real: Callable[..., Any], count: list[int]) -> Callable[..., Any]:
        def rename(*args: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == call and before:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **named)
            finally:
                if count[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        return rename

    def watched() -> None:
        count = [0]
        os.rename, os.replace = counted(os.rename, count), counted(os.replace, count)
        os.unlink = counted(os.unlink, count)
        if folders:
            os.mkdir, os.rmdir = counted(os.mkdir, count), counted(os.rmdir, count)
        work()

    return ended(forked(watched))
