"""Killed at any moment and resumed, a run ends as if nothing had happened: to the last bit, and the last line."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import Heard
from command_line import command, finished, process
from facts import raises
from kills import assert_same_run, killed_after, killed_at
from resumable import three_stages
from safetensors.torch import load_file

from crossdistill import Recipe, load_student, run
from crossdistill.autograd import factored as factored_gradient
from crossdistill.autograd import mapped as mapped_memory
from crossdistill.errors import ResumeError, StoppedError
from crossdistill.recipes import make
from crossdistill.runtime.files import read_sealed, write_sealed
from crossdistill.training import optimizer

ROOT = Path(__file__).resolve().parent.parent
RECIPE = f"{ROOT / 'resumable.py'}:three_stages"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(three_stages(), out)
    return out


def _stopped(recipe: Recipe, out: Path, steps: int = 1) -> None:
    """A run that is asked to stop after so many steps, new or resumed."""
    left = [steps]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    with raises(StoppedError, "resume=True"):
        run(recipe, out, resume=True, stop=stop)


def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    generator = random.Random(0)
    kills = 0
    while kills < 3 and not (out / "results.json").is_file():
        kills += killed_after(generator.uniform(0.2, 0.6), lambda: run(three_stages(), out, resume=True)) < 0
    assert kills
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.parametrize(("call", "before"), [(3, True), (9, False), (14, True)])
def test_a_kill_while_something_is_put_in_its_place(whole: Path, tmp_path: Path, call: int, before: bool) -> None:
    """A checkpoint or an outcome that is half written is none, and leaves nothing behind."""
    out = tmp_path / "run"
    assert killed_at(call, before, lambda: run(three_stages(), out)) == -signal.SIGKILL
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_kill_at_every_single_write(whole: Path, tmp_path: Path, part: int) -> None:
    """Right after each of them; right before one is where another, or nothing, was put in its place."""
    call, status = part, -signal.SIGKILL
    while status:
        call += 4
        out = tmp_path / f"run-{call}"
        status = killed_at(call - 3, False, lambda out=out: run(three_stages(), out))
        run(three_stages(), out, resume=True)
        assert_same_run(out, whole)
        shutil.rmtree(out)
    assert call > 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_kills_at_random_moments(whole: Path, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "run"
    generator = random.Random(seed)
    kills = 0
    while not (out / "results.json").is_file():
        kills += killed_after(generator.uniform(0.02, 1.5), lambda: run(three_stages(), out, resume=True)) < 0
    assert kills
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_repeated_kills_of_the_command_line(digits: None, tmp_path: Path) -> None:
    """All of it real: processes, signals, mst-distill on av-digits; each process gets a little further."""
    words = ["av-digits/mst-distill", "--tiny", "--set", "checkpoints.steps=3"]
    wanted, out = tmp_path / "whole", tmp_path / "killed"
    assert process("run", *words, "--out", wanted).status == 0
    generator = random.Random(1)
    kills = 0
    for stage in ("00-collaborate", "01-specialise", "02-route", "never"):
        child = subprocess.Popen(
            command("run", *words, "--out", out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None:
            if list((out / "checkpoints").glob(f"{stage[:2]}-*")):
                time.sleep(generator.uniform(0.0, 0.1))
                child.kill()
                child.wait()
            time.sleep(0.002)
        kills += child.returncode == -signal.SIGKILL
    assert kills >= 2
    assert (out / "results.json").is_file()
    assert_same_run(out, wanted)


def test_a_killed_command_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(command("run", RECIPE, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list((out / "checkpoints").glob("01-*")):
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (out / "results.json").exists()
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


def test_asked_to_stop_a_process_saves_and_says_how_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(
        command("run", RECIPE, "--set", "epochs=400", "--set", "every=100000", "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "collaborate ..." in line:
            time.sleep(0.3)
            child.send_signal(signal.SIGTERM)
            break
    lines += child.stderr.readlines()
    child.stderr.close()
    assert child.wait(60) == 128 + signal.SIGTERM
    said = "".join(lines)
    assert f"go on with: crossdistill run {RECIPE} --set epochs=400 --set every=100000 --out {out} --resume" in said
    assert "Traceback" not in said
    assert not max(path.name for path in (out / "checkpoints").iterdir()).endswith("-0000000")


def test_stopping_and_going_on_changes_nothing(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for steps in (1, 5, 2, 7):
        _stopped(three_stages(), out, steps)
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_resuming_where_nothing_was_saved_or_in_an_empty_folder_starts_anew(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rare = three_stages(every=10000)
    with pytest.raises(KeyboardInterrupt):
        run(rare, out, display=Heard(0))
    assert not (out / "checkpoints").exists()
    assert (out / "metrics.jsonl").exists()
    run(rare, out, resume=True)
    for name in ("student/model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    run(three_stages(), tmp_path / "empty", resume=True)
    assert_same_run(tmp_path / "empty", whole)


def test_resuming_a_finished_run_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    report = run(three_stages(), whole, resume=True)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert report.rows[-1].method == "route"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _stopped(three_stages(), out, 4)
    first, last = sorted((out / "checkpoints").iterdir())
    assert first != last
    weights = last / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run(three_stages(), out, resume=True)
    assert_same_run(out, whole)


def test_threads_and_device_are_those_of_the_start(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert torch.get_num_threads() == 1
    _stopped(three_stages(), out)
    environment = json.loads((out / "environment.json").read_text())
    assert (environment["threads"], environment["ranks"], environment["device"]) == (1, 1, "cpu")
    assert {"crossdistill", "python", "torch", "seed", "git"} <= set(environment)
    torch.set_num_threads(2)
    try:
        _stopped(three_stages(), out)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_device_that_auto_stood_for_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has got an accelerator meanwhile goes on where the run was started."""
    out = tmp_path / "run"
    _stopped(three_stages(), out)
    # Torch itself is left alone: built for CUDA, it would look for the driver.
    monkeypatch.setattr("crossdistill.runtime.distributed.kinds", lambda: ["cpu", "cuda"])
    _stopped(three_stages(), out)
    assert json.loads((out / "environment.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [("ranks", 2, ("processes", 2)), ("torch", "1.0", ("torch", "1.0")), ("device", "cuda:0", ("cuda",))],
)
def test_what_the_numbers_depend_on_has_to_be_the_same(
    tmp_path: Path, name: str, value: object, facts: tuple[object, ...]
) -> None:
    out = tmp_path / "run"
    recipe = three_stages().model_copy(update={"device": "cpu"})
    _stopped(recipe, out)
    path = out / "environment.json"
    write_sealed(path, {**read_sealed(path), name: value})
    with raises(ResumeError, *facts):
        run(recipe, out, resume=True)


def test_other_data_under_the_same_recipe_is_refused(digits: None, tmp_path: Path) -> None:
    """A recipe names files; what is in them may change between a kill and a resume."""
    recipe = make("av-digits/supervised", []).tiny()
    assert not recipe.live
    out = tmp_path / "run"
    dataset = recipe.data.load()
    with pytest.raises(StoppedError):
        run(recipe, out, dataset=dataset, stop=lambda: True)
    with raises(ResumeError, "data"):
        run(recipe, out, dataset=replace(dataset, fingerprint="other"), resume=True)


def test_a_resumed_student_is_the_one_that_is_loaded(whole: Path) -> None:
    with raises(Exception, "module="):
        load_student(whole)
    student = load_student(whole, three_stages().student.module)
    assert student.network.reads == ("first",)


def test_no_process_is_left_over() -> None:
    done = finished(["ps", "--ppid", str(os.getpid()), "-o", "stat="])
    assert not [line for line in done.out.split() if line.startswith("Z")]


@pytest.mark.slow
def test_what_lies_in_files_without_names_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's moments, best states, and gradients in factors: all weights count as large here."""
    for module in (factored_gradient, optimizer):
        monkeypatch.setattr(module, "LARGE_BYTES", 256)
    monkeypatch.setattr(mapped_memory, "FEW_BYTES", 0)
    recipe = three_stages()
    stages = list(recipe.stages)
    on_disk = stages[1].optimizer.model_copy(update={"moments": "disk"})
    stages[1] = stages[1].model_copy(update={"optimizer": on_disk})
    recipe = recipe.model_copy(update={"stages": tuple(stages)})
    run(recipe, tmp_path / "run")
    for path in sorted((whole / "stages").rglob("*.safetensors")):
        found = load_file(tmp_path / "run" / path.relative_to(whole))
        for name, value in load_file(path).items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{path.name}: {name}")
    for call in (5, 9, 14):
        out = tmp_path / f"killed {call}"
        assert killed_at(call, True, partial(run, recipe, out)) == -signal.SIGKILL
        run(recipe, out, resume=True)
        assert_same_run(out, tmp_path / "run")
