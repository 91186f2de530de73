"""Run folders: one process at a time computes in one, and damaged files are mended or said."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from builders import Heard
from command_line import command, process
from facts import raises, warned
from kills import assert_same_run, ended, forked, killed_after, killed_at
from locks import held_elsewhere
from resumable import two_stages

from crossdistill import Stage, run
from crossdistill.compare import Grid, compare
from crossdistill.errors import CrossdistillError, RecipeError, RunError, StoppedError, StorageError
from crossdistill.methods import KD, Specialise
from crossdistill.planning.fill_banks import prefill
from crossdistill.run_folder.folder import LOCK
from crossdistill.runtime import lock
from crossdistill.runtime.files import temporary_folder
from crossdistill.runtime.progress import Quiet

RECIPE = f"{Path(__file__).resolve().parent.parent / 'resumable.py'}:two_stages"
LONG = ("--set", "epochs=4000", "--set", "every=1000000")


class During(Quiet):
    """Does something once, in the middle of a run."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.caught: BaseException | None = None
        self.done = False

    def advance(self, parts: int = 1) -> None:
        if not self.done:
            self.done = True
            try:
                self.work()
            except CrossdistillError as error:
                self.caught = error


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def running(out: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes in this folder, for longer than a test takes."""
    child = subprocess.Popen(
        command("run", RECIPE, *LONG, *more, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (out / "metrics.jsonl").is_file():
            assert child.poll() is None
            time.sleep(0.01)
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("resume", [False, True])
def test_a1_two_runs_into_one_folder(tmp_path: Path, resume: bool) -> None:
    """The second one is refused at once, and the first one's numbers are those of a run alone."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    during = During(lambda: run(two_stages(seed=0 if resume else 1), out, resume=resume))
    run(two_stages(), out, display=during)
    assert isinstance(during.caught, RunError)
    assert f"process {os.getpid()} on" in str(during.caught)
    run(two_stages(), alone)
    assert yaml.safe_load((out / "recipe.yaml").read_text())["seed"] == 0
    weights = Path("student") / "model.safetensors"
    assert (out / weights).read_bytes() == (alone / weights).read_bytes()
    assert names(out) == names(alone)


@pytest.mark.slow
def test_a1_two_processes_and_a_killed_holder(tmp_path: Path) -> None:
    """Refused in seconds while the first one lives, with its process; free at once when that is killed."""
    out = tmp_path / "run"
    with running(out) as first:
        began = time.monotonic()
        for words in (["--seed", "1"], ["--resume"]):
            said = process("run", RECIPE, *LONG, *words, "--out", out)
            assert f"process {first.pid} on" in said.complaint()
        assert time.monotonic() - began < 60
        first.send_signal(signal.SIGKILL)
        first.wait()
        with pytest.raises(StoppedError):
            run(two_stages(epochs=4000, every=1000000), out, resume=True, stop=lambda: True)
    assert not (out / LOCK).exists()


def test_a1_a_holder_of_another_machine_is_named_and_succeeded_once_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    held_elsewhere(tmp_path / "run" / LOCK, stale_s=0.5)
    with raises(RunError, "process 7", "elsewhere"):
        run(two_stages(), tmp_path / "run")
    os.utime(tmp_path / "run" / LOCK, (1, 1))
    with warned(RuntimeWarning, 7, "elsewhere"):
        run(two_stages(), tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_a1_a_second_process_may_wait(tmp_path: Path) -> None:
    """What workers of a comparison do: the second one finds the run finished."""
    out, heard = tmp_path / "run", Heard()
    child = forked(lambda: run(two_stages(), out))
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.005)
    report = run(two_stages(), out, resume=True, display=heard, wait=True)
    ended(child)
    assert report.rows
    assert any(f"process {child} on" in line for line in heard.lines), heard.lines
    assert any("finished already" in line for line in heard.lines), heard.lines


def test_a1_bank_fill_beside_a_run(tmp_path: Path) -> None:
    """A run that starts leaves alone what another process is making in its folder of banks."""
    recipe = two_stages()
    recipe = recipe.model_copy(update={"stages": (Stage(method=KD(), epochs=3),)})
    out = tmp_path / "run"

    class Starting(Quiet):
        def begin(self, name: str, total: int) -> None:
            # The bank's folder is half made now; a run begins in the same folder.
            (out / "banks").mkdir(parents=True, exist_ok=True)
            half = temporary_folder(out / "banks" / "half")
            run(recipe, out)
            assert half.is_dir()
            half.rmdir()

    assert prefill(recipe, out, display=Starting()) == []


def test_a1_two_comparisons_into_one_folder(tmp_path: Path) -> None:
    grid = Grid.parse("av-digits", methods="supervised", seeds=1, tiny=True)
    held_elsewhere(tmp_path / "c" / LOCK, host=None, process=os.getpid())
    with raises(RunError, os.getpid()):
        compare(grid, tmp_path / "c")
    with raises(RunError, os.getpid()):
        run(two_stages(), tmp_path / "c")


def test_a1_a_run_whose_folder_was_taken_over_says_so(tmp_path: Path) -> None:
    """What happens where a laptop sleeps while another machine waits for the folder."""
    out = tmp_path / "run"
    taken = During(lambda: held_elsewhere(out / LOCK))
    with raises(RunError, "another process"):
        run(two_stages(), out, display=taken)


def test_d_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    recipe = two_stages()
    bad = recipe.model_copy(update={"stages": (Stage(method=Specialise(taps={"teacher-0": ("nowhere",)}), epochs=1),)})
    with pytest.raises(RecipeError):
        run(bad, tmp_path / "deep" / "run")
    with pytest.raises(RecipeError):
        compare(Grid.parse("av-digits", methods="supervised", seeds=1, settings=("nonsense=1",)), tmp_path / "x" / "c")
    assert list(tmp_path.iterdir()) == []


def test_a1_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(StorageError, tmp_path / "file"):
        run(two_stages(), tmp_path / "file")


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    """At every kind of write, the lock's included, and at random moments; the resumed run is the undisturbed one."""
    whole = tmp_path / "whole"
    began = time.monotonic()
    run(two_stages(), whole)
    takes = time.monotonic() - began
    kills, call, generator = 0, 0, random.Random(0)
    while kills < 38:
        call += 1 + call // 20
        out = tmp_path / f"write-{call}"
        status = killed_at(call, bool(call % 2), lambda out=out: run(two_stages(), out), folders=True)
        assert status == -signal.SIGKILL, call
        kills += 1
        run(two_stages(), out, resume=True)
        assert_same_run(out, whole)
        shutil.rmtree(out)
    while kills < 50:
        out = tmp_path / f"moment-{kills}"
        kills += killed_after(generator.uniform(0.0, takes), lambda out=out: run(two_stages(), out, resume=True)) < 0
        run(two_stages(), out, resume=True)
        assert_same_run(out, whole)


def test_a1_a_finished_run_keeps_nothing_of_a_killed_lock(tmp_path: Path) -> None:
    """What is left where a process is killed while it gives its lock up, which is the last thing that a run does."""
    given = two_stages()
    run(given, tmp_path / "out")
    held_elsewhere(tmp_path / "out" / LOCK, host=None, process=2**22 + 1, start=1)
    run(given, tmp_path / "out", resume=True)
    assert not (tmp_path / "out" / LOCK).exists()
