"""What a stopped run says is the very command, or call, that goes on; Ctrl-C in a program saves first."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import Command, command
from resumable import two_stages

from crossdistill import Recipe, Report, run
from crossdistill.errors import StoppedError
from crossdistill.recipes import make
from crossdistill.runtime.progress import Quiet

RECIPE = f"{Path(__file__).resolve().parent.parent / 'resumable.py'}:two_stages"
WEIGHTS = Path("student") / "model.safetensors"
LONG = ["--set", "epochs=60", "--set", "every=20"]
DIGITS = ["av-digits/supervised", "--tiny", "--set", "stages.0.epochs=40", "--set", "checkpoints.steps=20"]


def stopped(words: list[str], out: Path, where: Path) -> str:
    """What a command says that gets a Ctrl-C while it trains."""
    child = subprocess.Popen(
        command("run", *words), cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    while not list((out / "checkpoints").glob("0*")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 128 + signal.SIGINT, said
    assert "Traceback" not in said
    return said


def hinted(said: str, where: Path) -> None:
    """Do what it says, in a shell."""
    hint = said.partition("go on with: ")[2].splitlines()[0]
    assert hint.startswith("crossdistill run "), said
    words = [sys.executable, "-m", *shlex.split(hint)]
    finished = {path: path.stat().st_mtime_ns for path in where.rglob("stages/*/outcome.json")}
    done = subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    # A stage that had its end only just before the signal is not begun again; the next one then starts from nothing.
    assert "resumes from" in done.stderr or finished, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


CASES = {
    "a function of a file": (["plain.py:two_stages", *LONG, "--seed", "3"], "runs/two-stages-seed3"),
    "a short name": (DIGITS, "runs/av-digits-supervised-image-seed0-tiny"),
    "a run's recipe": (["first/recipe.yaml", "--out", "runs/second one"], "runs/second one"),
    "a function, tiny": (["plain.py:two_stages", "--tiny", *LONG, "--set", "stages.0.epochs=4"], "runs/tiny"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_d_the_printed_command_goes_on(name: str, tmp_path: Path, digits: None) -> None:
    words, folder = CASES[name]
    (tmp_path / "plain.py").write_text(Path(RECIPE.partition(":")[0]).read_text())
    if name == "a run's recipe":
        recipe = make("av-digits/supervised", ["checkpoints.steps=20"]).tiny().overridden(["stages.0.epochs=40"])
        (tmp_path / "first").mkdir()
        (tmp_path / "first" / "recipe.yaml").write_text(recipe.to_yaml())
    if "--out" not in words and "plain.py" in words[0]:
        words = [*words, "--out", folder]
    hinted(stopped(words, tmp_path / folder, tmp_path), tmp_path)
    assert Report.load(tmp_path / folder).rows


def test_d_a_run_that_is_ended_at_once_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crossdistill: Command
) -> None:
    """Of a run's own recipe the same command with --resume would go on in the folder that the recipe is from."""
    first = tmp_path / "first"
    first.mkdir()
    (first / "recipe.yaml").write_text(make("av-digits/kd", []).tiny().to_yaml())

    def ended(recipe: Recipe, out: Path, **_: object) -> None:
        (out / "recipe.yaml").parent.mkdir(exist_ok=True)
        if out.name == "second":
            (out / "recipe.yaml").write_text(recipe.to_yaml())
        raise KeyboardInterrupt

    monkeypatch.setattr("crossdistill.training.runner.run", ended)
    said = crossdistill("run", first / "recipe.yaml", "--out", "second")
    assert said.status == 130
    assert "go on with: crossdistill run second --resume" in said.err
    said = crossdistill("run", first / "recipe.yaml", "--out", "third")
    assert said.status == 130
    assert "nothing was saved" in said.err
    assert "--resume" not in said.err


def test_d_the_hint_of_eval_for_a_tiny_run_has_words_that_eval_takes(tmp_path: Path, crossdistill: Command) -> None:
    recipe = make(RECIPE, ["every=3"], 2).tiny()
    run(recipe, tmp_path / "run")
    said = crossdistill("eval", tmp_path / "run").complaint()
    words = shlex.split(said.partition("crossdistill eval ")[2])
    assert "--tiny" not in words
    assert crossdistill("eval", *words).status == 0


class Interrupted(Quiet):
    """Sends this process a Ctrl-C at its fifth step."""

    def __init__(self) -> None:
        self.left = 5

    def advance(self, parts: int = 1) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def default_handler() -> object:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_handler")
def test_d_a_ctrl_c_in_a_program_saves_and_says_how_it_goes_on(tmp_path: Path) -> None:
    out, alone = tmp_path / "it's a run", tmp_path / "alone"
    recipe = two_stages(every=1000)
    with pytest.raises(StoppedError) as stop:
        run(recipe, out, display=Interrupted())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert max(path.name for path in (out / "checkpoints").iterdir()).endswith("-00001-0000002")
    hint = str(stop.value).partition("go on with: ")[2].partition(" in the program")[0]
    assert hint.startswith("run(recipe, ")
    assert hint == f"run(recipe, {str(out)!r}, resume=True)"
    run(recipe, out, resume=True)
    run(recipe, alone)
    assert (out / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("default_handler")
def test_d_a_handler_of_the_programs_own_and_other_threads_are_left_alone(tmp_path: Path) -> None:
    heard: list[int] = []

    def own(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, own)
    run(two_stages(), tmp_path / "main", display=Interrupted())
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=run, args=(two_stages(), tmp_path / "thread"))
    thread.start()
    thread.join()
    assert Report.load(tmp_path / "thread").rows
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
