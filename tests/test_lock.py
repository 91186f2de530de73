import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crossdistill.lock import GIVEN_UP, HOLDER, Holder, Lock


def abroad(path: Path, generation: str = "000001") -> Path:
    """A lock held by a process of another machine, of which nothing can be known but its silence."""
    folder = path / generation
    folder.mkdir(parents=True)
    (folder / HOLDER).write_text(json.dumps({"machine": "elsewhere/x/y", "process": 7, "began": "1"}))
    return folder


def test_one_holds_it_and_the_next_gets_it_after_release(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    assert first.acquire()
    assert not second.acquire()
    holder = second.holder()
    assert holder is not None
    assert holder.process == os.getpid()
    first.release()
    assert second.holder() is None
    assert second.acquire()
    assert not first.acquire()
    second.release()


def test_of_many_threads_one_at_a_time(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(3):
            with Lock(tmp_path / "a").held(every_s=0.001):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                entered[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == [18]
    assert most == [1]


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path: Path, how: str) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom crossdistill.lock import Lock\n"
        "assert Lock(Path(sys.argv[1])).acquire()\nprint('held', flush=True)\n"
        "time.sleep(60 if sys.argv[2] == 'kill' else 0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a"), how], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    lock = Lock(tmp_path / "a")
    if how == "kill":
        assert not lock.acquire()
        # Not reaped yet: a dead child counts as dead all the same.
        child.kill()
    deadline = time.monotonic() + 20
    while not lock.acquire():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.wait()
    child.stdout.close()
    lock.release()


def test_a_process_number_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    first = Lock(tmp_path / "a")
    assert first.acquire()
    file = tmp_path / "a" / "000001" / HOLDER
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"began": "1"}))
    assert Lock(tmp_path / "a").acquire()
    first.release()


def test_another_machine_holds_it_until_it_is_silent_for_long(tmp_path: Path) -> None:
    folder = abroad(tmp_path / "a")
    lock = Lock(tmp_path / "a", stale_s=50.0)
    assert not lock.acquire()
    long_ago = time.time() - 100
    os.utime(folder / HOLDER, (long_ago, long_ago))
    assert lock.holder() is None
    assert lock.acquire()
    assert [path.name for path in sorted((tmp_path / "a").glob("0*"))] == ["000001", "000002"]
    lock.release()


def test_a_holder_keeps_saying_that_it_lives(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a", beat_s=0.02)
    assert lock.acquire()
    file = tmp_path / "a" / "000001" / HOLDER
    os.utime(file, (1, 1))
    deadline = time.monotonic() + 10
    while file.stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_who_waits_says_once_for_whom(tmp_path: Path) -> None:
    folder = abroad(tmp_path / "a")
    said: list[Holder] = []

    def free() -> None:
        while not said:
            time.sleep(0.005)
        time.sleep(0.05)
        (folder / GIVEN_UP).touch()

    helper = threading.Thread(target=free)
    helper.start()
    with Lock(tmp_path / "a").held(said.append, every_s=0.01):
        helper.join()
    assert len(said) == 1
    assert "process 7 on elsewhere" in str(said[0])


def test_a_folder_without_a_holder_is_of_a_process_that_was_killed(tmp_path: Path) -> None:
    """A generation comes with its holder's name, which goes first when it is given up."""
    (tmp_path / "a" / "000001").mkdir(parents=True)
    lock = Lock(tmp_path / "a")
    assert lock.acquire()
    lock.release()
    assert not (tmp_path / "a").exists()


def test_a_damaged_holder_counts_by_its_age(tmp_path: Path) -> None:
    folder = abroad(tmp_path / "a")
    (folder / HOLDER).write_text("{")
    lock = Lock(tmp_path / "a", stale_s=50.0)
    assert not lock.acquire()
    os.utime(folder / HOLDER, (1, 1))
    assert lock.acquire()
    lock.release()
