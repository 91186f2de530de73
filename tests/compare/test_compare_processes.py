"""Comparisons on the real command line whose processes are killed: here, on a Ray cluster, and as Slurm's jobs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossdistill.report import Report
from crossdistill.run_folder.folder import LOCK
from crossdistill.runtime.lock import Lock

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("digits")]

GRID = ["--tiny", "--methods", "supervised,kd", "--students", "image", "--teachers", "mm,cm", "--seeds", "2"]
CELLS = 6
SECONDS = 400


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    """The command, in a session of its own, so that nothing but it is killed with it."""
    command = [sys.executable, "-m", "crossdistill", "compare", "av-digits", *GRID, "--out", str(out), "--jobs", "2"]
    log = (out.parent / f"{out.name}.log").open("a")
    with log:
        return subprocess.Popen([*command, *more], stdout=log, stderr=log, text=True, start_new_session=True)


def log_of(out: Path) -> str:
    return (out.parent / f"{out.name}.log").read_text()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (value := what()):
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def done(out: Path) -> dict[str, int]:
    """Finished cells and stages, with the moment of their writing."""
    files = [*out.glob("cells/*/results.json"), *out.glob("shared/*/outcome.json")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def holders(out: Path) -> list[int]:
    """Processes that work on a cell now."""
    holding = [Lock(path).holder() for path in out.glob(f"cells/*/{LOCK}")]
    return [holder.process for holder in holding if holder is not None and alive(holder.process)]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def numbers(out: Path) -> list[tuple[object, ...]]:
    """The results without times."""
    return [(row.method, row.teachers, row.values) for row in Report.load(out).rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: None) -> list[tuple[object, ...]]:
    """The results of a comparison without interruption."""
    out = tmp_path_factory.mktemp("whole") / "c"
    assert started(out).wait(SECONDS) == 0, log_of(out)
    return numbers(out)


def test_a_killed_comparison_resumes_and_repeats_nothing(tmp_path: Path, whole: list[tuple[object, ...]]) -> None:
    out = tmp_path / "c"
    more: list[str] = []
    for cells in (1, 3):
        process = started(out, *more)
        wait_for(lambda cells=cells: len(list(out.glob("cells/*/results.json"))) >= cells and holders(out), process)
        workers = holders(out)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "workers outlive the command"
            time.sleep(0.05)
        assert not (out / "results.json").exists()
        more = ["--resume"]
    before = done(out)
    assert started(out, "--resume").wait(SECONDS) == 0, log_of(out)
    after = done(out)
    assert len([name for name in after if name.startswith("cells")]) == CELLS
    assert {name: after[name] for name in before} == before
    assert numbers(out) == whole


def test_a_worker_that_is_killed_costs_its_cell_alone(tmp_path: Path, whole: list[tuple[object, ...]]) -> None:
    out = tmp_path / "c"
    process = started(out)
    os.kill(wait_for(lambda: holders(out), process)[0], signal.SIGKILL)
    assert process.wait(SECONDS) == 1
    assert "its worker process died: SIGKILL" in log_of(out)
    failed = json.loads((out / "comparison.json").read_text())["failed"]
    assert len(failed) == 1
    assert len(list(out.glob("cells/*/results.json"))) == CELLS - 1
    before = done(out)
    assert started(out, "--resume").wait(SECONDS) == 0, log_of(out)
    assert {name: moment for name, moment in done(out).items() if name in before} == before
    assert numbers(out) == whole


def killed_in_the_middle(out: Path, place: str) -> None:
    """Compare on a cluster and kill a worker while cells run; the grid finishes nevertheless."""
    process = started(out, "--on", place)
    workers = wait_for(lambda: list(out.glob("cells/*/results.json")) and holders(out), process)
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(SECONDS) == 0, log_of(out)
    assert "is tried once more" in log_of(out)


def test_on_ray_with_two_workers_one_of_which_is_killed(tmp_path: Path, whole: list[tuple[object, ...]]) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip('ray is not installed: pip install "crossdistill[ray]"')
    out = tmp_path / "c"
    killed_in_the_middle(out, "ray")
    assert "2 workers on ray" in log_of(out)
    assert json.loads((out / "comparison.json").read_text())["failed"] == {}
    assert numbers(out) == whole


def test_as_slurm_jobs_through_the_local_executor(tmp_path: Path, whole: list[tuple[object, ...]]) -> None:
    if importlib.util.find_spec("submitit") is None:
        pytest.skip('submitit is not installed: pip install "crossdistill[slurm]"')
    out = tmp_path / "c"
    killed_in_the_middle(out, "slurm:cluster=local,timeout_min=10")
    # One job for each cell, and one for the second try.
    assert len(list((out / "slurm").glob("*_submitted.pkl"))) == CELLS + 1
    assert numbers(out) == whole
