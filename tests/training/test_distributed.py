"""Two processes started by torchrun equal one, through the real command line, on the CPU."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_recipes
import pytest
from command_line import Said, finished
from distributed_recipes import CASES, recipe
from facts import raises
from safetensors.torch import load_file

from crossdistill.errors import ResumeError
from crossdistill.recipes import make
from crossdistill.training.runner import run

RECIPES = str(Path(distributed_recipes.__file__).resolve())
RECIPE = f"{RECIPES}:recipe"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


def launch(*words: object, ranks: int = 2) -> list[str]:
    """`torchrun ... -m crossdistill ...`, with a port of its own choice."""
    return [*TORCHRUN, str(ranks), "-m", "crossdistill", *map(str, words)]


def several(*words: object, ranks: int = 2) -> Said:
    return finished(launch(*words, ranks=ranks))


def settings(**given: object) -> list[str]:
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def assert_close(found: Path, wanted: Path) -> None:
    """Every weight, and every number that was logged."""
    files = sorted(path.relative_to(wanted) for path in wanted.rglob("*.safetensors"))
    assert any("stages" in str(path) for path in files)
    for path in files:
        one, two = load_file(found / path), load_file(wanted / path)
        assert set(one) == set(two)
        for name, value in two.items():
            apart = (one[name].double() - value.double()).abs().max().item() if value.numel() else 0.0
            assert apart <= TOLERANCE * max(1.0, value.abs().max().item()), (path, name, apart)
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (found, wanted)]
    for mine, theirs in zip(*lines, strict=True):
        one, two = json.loads(mine), json.loads(theirs)
        assert set(one) == set(two)
        for name, value in two.items():
            assert one[name] == (pytest.approx(value, abs=1e-5, rel=1e-4) if isinstance(value, float) else value), name
    results = [[row["mean"] for row in json.loads((out / "results.json").read_text())] for out in (found, wanted)]
    assert results[0] == pytest.approx(results[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    said = finished([*TORCHRUN, "2", RECIPES, str(folder)], timeout=600)
    assert said.status == 0, said.err
    return folder


def test_two_processes_equal_one(two: Path, tmp_path: Path) -> None:
    """Every method and weighting; absent modalities, and a last step of one row, which leaves the second with none."""
    # What rounding does to a step, later ones amplify.
    for case in CASES.keys() - {"longer"}:
        run(recipe(**CASES[case]), tmp_path / case)
        assert_close(two / case, tmp_path / case)


def test_the_command_line_under_two_processes(digits: None, tmp_path: Path) -> None:
    words = ["av-digits/mst-distill", "--tiny"]
    for stage in ("collaborate", "specialise", "route"):
        words += ["--set", f"stages.{stage}.optimizer.name=sgd"]
    said = several("run", *words, "--out", tmp_path / "two")
    assert said.status == 0, said.err
    # One of them speaks.
    assert (said.out.count("| data | student |"), said.err.count("results: ")) == (1, 1)
    run(make(words[0], words[3::2]).tiny(), tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


def test_killed_and_resumed_under_two_processes(two: Path, tmp_path: Path) -> None:
    said = finished([*TORCHRUN, "2", RECIPES, str(tmp_path), "longer", "20"])
    assert said.status != 0
    assert "SIGKILL" in said.err
    out = tmp_path / "longer"
    assert list((out / "checkpoints").iterdir())
    assert not (out / "results.json").exists()
    said = finished([*TORCHRUN, "2", RECIPES, str(tmp_path), "longer"])
    assert said.status == 0, said.err
    # Of 45: the last checkpoint was made after 18.
    assert said.out.split("\n")[:2] == ["27 steps"] * 2
    for name in ("student/model.safetensors", "metrics.jsonl", "stages/00-route/method.safetensors"):
        assert (out / name).read_bytes() == (two / "longer" / name).read_bytes(), name


def test_asked_to_stop_two_processes_save_together_and_one_cannot_go_on(tmp_path: Path) -> None:
    given = {"method": "kd", "epochs": 4000, "every": 100000}
    out = tmp_path / "out"
    child = subprocess.Popen(
        launch("run", RECIPE, *settings(**given), "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while child.poll() is None and not list((out / "checkpoints").glob("00-*")):
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=300)
    assert child.returncode != 0
    hints = [line for line in err.splitlines() if "go on with: torchrun --nproc-per-node 2 -m crossdistill run" in line]
    assert len(hints) == 1, err
    assert f"--out {out}" in hints[0]
    assert hints[0].endswith("--resume")
    with raises(ResumeError, "processes", 2, 1):
        run(recipe(**given), out, resume=True)


def test_what_stops_one_process_stops_all_with_a_reason(tmp_path: Path) -> None:
    words = ["run", RECIPE, *settings(method="kd"), "--set", "stages.0.optimizer.learning_rate=1e30"]
    said = several(*words, "--out", tmp_path / "out")
    assert said.status != 0
    assert "crossdistill: stage 'kd', epoch 0, step" in said.err
    assert "NaN or Inf in" in said.err
