"""Workers that die, in every way, cost one task; workers whose parent dies end by themselves."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import states

from crossdistill.compare.executors.local import Message, Pool
from crossdistill.errors import SettingError


def work(task: dict[str, Any], send: Callable[[str, Any], None]) -> str:
    """The work of the tests' workers."""
    send("begin", os.getpid())
    match task["do"]:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise KeyError("an unexpected error")
        case "refuse":
            raise SettingError("cannot be")
        case "die later":
            # After the result was sent, while the worker is idle.
            os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 0.2; kill -9 {os.getpid()}")
    return f"did {task['do']}"


def run(tasks: list[str], workers: int, pause_s: float = 0.0) -> dict[int, Message]:
    waiting = list(range(len(tasks)))
    ends: dict[int, Message] = {}

    def choose() -> int | None:
        if ends:
            time.sleep(pause_s)
        return waiting.pop(0) if waiting else None

    for message in Pool(work, workers).run([{"do": task} for task in tasks], choose):
        if message.kind in {"done", "failed"}:
            ends[message.task] = message
    return ends


def test_a_worker_that_ends_in_any_way_costs_one_task() -> None:
    ends = run(["a", "exit", "b", "kill", "raise", "refuse", "c"], workers=1)
    assert [ends[i].kind for i in range(7)] == ["done", "failed", "done", "failed", "failed", "failed", "done"]
    states(ends[1].value, "exit status 3")
    states(ends[3].value, "SIGKILL", "memory")
    assert "an unexpected error" in ends[4].value
    assert "Traceback" in ends[4].value
    assert (ends[5].value, ends[6].value) == ("cannot be", "did c")


def test_a_worker_that_dies_while_idle_costs_nothing() -> None:
    ends = run(["die later", "a"], workers=1, pause_s=1.0)
    assert [ends[0].kind, ends[1].kind] == ["done", "done"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_their_parent_dies(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from crossdistill.compare.executors.local import Pool

            def work(task, send):
                send("begin", os.getpid())
                while True:  # busy, without reading the pipe
                    time.sleep(0.01)

            if __name__ == "__main__":
                tasks = [0]
                for message in Pool(work, 1).run([None], lambda: tasks.pop() if tasks else None):
                    print(message.value, flush=True)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.send_signal(how)
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}/stat").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)
    parent.stdout.close()
