"""Two processes started by torchrun equal one, through the real command line, on the CPU."""

import json
import sys
from pathlib import Path

import distributed_recipes
import pytest
from command_line import Said, finished
from distributed_recipes import CASES, recipe
from safetensors.torch import load_file

from crossdistill.runner import run

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
    said = finished([*TORCHRUN, "2", RECIPES, str(folder)])
    assert said.status == 0, said.err
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, two: Path, tmp_path: Path) -> None:
    run(recipe(**CASES[case]), tmp_path / "one")
    assert_close(two / case, tmp_path / "one")


def test_the_command_line_under_two_processes(tmp_path: Path) -> None:
    said = several("run", RECIPE, *settings(method="collaborate"), "--out", tmp_path / "two")
    assert said.status == 0, said.err
    # One of them speaks.
    assert said.out.count("| data | student |") == 1
    assert said.err.count("results: ") == 1
    run(recipe("collaborate"), tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


def test_three_processes_on_the_embedded_data(digits: None, tmp_path: Path) -> None:
    words = ["av-digits/mst-distill", "--tiny"]
    for stage in ("collaborate", "specialise", "route"):
        words += ["--set", f"stages.{stage}.optimizer.name=sgd"]
    # One mask on maps has a BatchNorm, which sees other rows in each process; vectors have none.
    words += ["--set", "stages.specialise.method.taps={mm: [fc1], audio: [fc1]}"]
    said = several("run", *words, "--out", tmp_path / "three", ranks=3)
    assert said.status == 0, said.err
    alone = finished([sys.executable, "-m", "crossdistill", "run", *words, "--out", str(tmp_path / "one")])
    assert alone.status == 0, alone.err
    assert_close(tmp_path / "three", tmp_path / "one")


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", RECIPE, *settings(method="kd", absent=0.0), "--out", out]
    with pytest.raises(KeyboardInterrupt):
        run_until_first_checkpoint(out)
    said = several(*words, "--resume")
    assert said.status != 0
    assert f"{out} cannot be resumed: the number of processes was 1 when it was started, and is 2 now" in said.err


def run_until_first_checkpoint(out: Path) -> None:
    class Stop:
        def __call__(self) -> bool:
            raise KeyboardInterrupt

    run(recipe(), out, stop=Stop())
