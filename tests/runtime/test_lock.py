import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from facts import warned
from locks import held_elsewhere

from crossdistill.runtime.lock import STALE_S, Holder, Lock

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom crossdistill.runtime.lock import Lock\n"
    "lock = Lock(Path(sys.argv[1]), beat_s=0.1, stale_s=float(sys.argv[3]))\n"
    "assert lock.acquire()\nprint('held', flush=True)\n"
    "time.sleep(0 if sys.argv[2] == 'exit' else 60)"
)


def child(path: Path, ending: str = "kill", stale_s: float = 60.0) -> subprocess.Popen[str]:
    """A process that holds the lock at a path."""
    command = [sys.executable, "-c", HOLD, str(path), ending, str(stale_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_one_holds_it_and_the_next_gets_it_after_release(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    assert first.acquire()
    assert not first.acquire()
    assert not second.acquire()
    holder = second.holder()
    assert holder.process == os.getpid()
    assert holder.here
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.holder() is None
    assert second.acquire()
    assert not first.acquire()
    # Releasing a lock that is not held has no effect.
    first.release()
    assert not first.acquire()
    second.release()


def test_of_many_threads_one_at_a_time(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(20):
            with Lock(tmp_path / "a").held(every_s=0.001):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                entered[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == [120]
    assert most == [1]


def _until_logged(line: str, log: Path) -> None:
    # A process that is killed while it writes who it is leaves a lock without a holder, which is free after STALE_S.
    deadline = time.monotonic() + 2 * STALE_S
    while not log.is_file() or line not in log.read_text():
        assert time.monotonic() < deadline, line
        time.sleep(0.02)


@pytest.mark.slow
def test_of_many_processes_that_are_killed_one_at_a_time(tmp_path: Path) -> None:
    """Each appends two lines while it holds the lock, and is killed at a random moment: no two are interleaved."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom crossdistill.runtime.lock import Lock\n"
        "log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "while True:\n"
        "    with Lock(Path(sys.argv[1])).held(every_s=0.001):\n"
        "        os.write(log, b'in %d\\n' % os.getpid())\n"
        "        time.sleep(0.002)\n"
        "        os.write(log, b'out %d\\n' % os.getpid())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "log")]
    running: list[subprocess.Popen[bytes]] = []
    for number in range(24):
        running.append(subprocess.Popen(command))
        _until_logged(f"in {running[-1].pid}\n", tmp_path / "log")
        if number >= 3:
            time.sleep(0.05 + 0.037 * (number % 7))
            # A dead process that its parent has not waited for counts as alive until its lock is old.
            running[number - 3].kill()
            running[number - 3].wait()
    for process in running:
        process.kill()
        process.wait()
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) > 200
    for (first, who), (second, next_one) in itertools.pairwise(lines):
        # The line after "in" is its own "out"; a killed holder is followed by another one's "in".
        assert second == "in" or (first == "in" and next_one == who)


@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path: Path, ending: str) -> None:
    process = child(tmp_path / "a", ending)
    lock = Lock(tmp_path / "a")
    if ending == "kill":
        assert not lock.acquire()
        process.kill()
    process.wait()
    assert lock.acquire()
    lock.release()


def test_a_dead_child_that_nobody_waited_for_is_succeeded_once_it_is_silent(tmp_path: Path) -> None:
    process = child(tmp_path / "a", stale_s=0.5)
    process.kill()
    lock = Lock(tmp_path / "a", beat_s=0.1, stale_s=0.5)
    deadline = time.monotonic() + 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while not lock.acquire():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    lock.release()
    process.wait()


def test_a_suspended_process_of_this_machine_keeps_it(tmp_path: Path) -> None:
    process = child(tmp_path / "a", stale_s=0.4)
    process.send_signal(signal.SIGSTOP)
    lock = Lock(tmp_path / "a", beat_s=0.1, stale_s=0.4)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert not lock.acquire()
        time.sleep(0.02)
    process.kill()
    process.wait()


def test_a_process_number_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "a", host=None, process=os.getpid(), start=1)
    lock = Lock(tmp_path / "a")
    assert lock.acquire()
    lock.release()


def test_another_machine_holds_it_until_it_is_silent_for_long(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "a", stale_s=0.5)
    lock = Lock(tmp_path / "a", beat_s=0.1, stale_s=0.5)
    assert not lock.acquire()
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while not lock.acquire():
            time.sleep(0.05)
    assert time.monotonic() - began > 0.3
    lock.release()


def test_a_file_of_another_machine_that_is_old_is_watched_in_one_call(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "a", stale_s=0.5)
    os.utime(tmp_path / "a", (1, 1))
    lock = Lock(tmp_path / "a", beat_s=0.1, stale_s=0.5)
    with warned(RuntimeWarning, 7, "elsewhere"):
        assert lock.acquire()
    lock.release()


def test_a_holder_keeps_refreshing_and_sees_that_it_was_lost(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a", beat_s=0.02, stale_s=10.0)
    assert lock.acquire()
    os.utime(tmp_path / "a", (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / "a").stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not lock.lost
    held_elsewhere(tmp_path / "a")
    lock.release()
    assert lock.lost
    # The file is another one's now.
    assert (tmp_path / "a").exists()


def test_who_waits_says_once_for_whom(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "a")
    said: list[Holder] = []

    def free() -> None:
        while not said:
            time.sleep(0.005)
        time.sleep(0.05)
        (tmp_path / "a").unlink()

    helper = threading.Thread(target=free)
    helper.start()
    with Lock(tmp_path / "a").held(said.append, every_s=0.01):
        helper.join()
    assert len(said) == 1
    assert "process 7 on elsewhere" in str(said[0])


def test_what_a_killed_takeover_left_goes_with_the_next_holder(tmp_path: Path) -> None:
    dead = 2**22 + 1
    here, foreign = tmp_path / f"a.break.{dead}.{'0' * 32}", tmp_path / f"a.break.{dead}.{'1' * 32}"
    alive = tmp_path / f"a.break.{os.getpid()}.{'2' * 32}"
    for path, host in ((here, None), (foreign, "elsewhere"), (alive, None)):
        held_elsewhere(path, host=host)
    lock = Lock(tmp_path / "a")
    assert lock.acquire()
    lock.release()
    assert sorted(tmp_path.iterdir()) == sorted([foreign, alive])
