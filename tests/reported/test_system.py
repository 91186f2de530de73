"""What the system around a run does: permissions, repositories that run programs, pipes, killed builds, empty names."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command
from facts import raises
from resumable import two_stages

from crossdistill import Recipe, Stage, run
from crossdistill.compare.grid import Grid
from crossdistill.data import cache
from crossdistill.errors import DataError, RecipeError, SettingError
from crossdistill.methods import KD
from crossdistill.planning.fill_banks import prefill
from crossdistill.recipes import make
from crossdistill.run_folder.environment import _git_state
from crossdistill.runtime.files import atomic_folder, temporary_folder, write_text
from crossdistill.runtime.tensor_file import read_weights


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def taught() -> Recipe:
    return two_stages().model_copy(update={"stages": (Stage(method=KD(), epochs=3),)})


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True, ids=oct)
def test_c_permissions_are_those_of_the_umask(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, their stages, shared stages, banks and the cache: a group can share them, and private ones stay so."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    run(two_stages(), tmp_path / "run", share=tmp_path / "share")
    prefill(taught(), tmp_path / "filled")
    cache.keep("some", {}, lambda folder: write_text(folder / "file", "x"))
    found = modes(tmp_path)
    kinds = {
        "run/student/model.safetensors",
        "run/recipe.yaml",
        "run/results.json",
        "run/predictions.npz",
        "run/stages",
    }
    assert kinds <= set(found)
    assert any(name.endswith("claims.lock") for name in found)
    assert any(name.startswith("share/") and name.endswith("outcome.json") for name in found)
    assert any(name.startswith("cache/") and name.endswith("entry.json") for name in found)
    for name, mode in found.items():
        full = 0o777 if (tmp_path / name).is_dir() else 0o666
        assert oct(mode) == oct(full & ~umask), name


def repository(folder: Path, *settings: str) -> None:
    """A repository with one commit, and settings that came with it."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]

    def git(*words: str) -> None:
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, env=environment)

    git("init", "-q")
    (folder / "file.txt").write_text("one")
    git("add", "file.txt")
    git("commit", "-q", "-m", "first")
    for setting in settings:
        name, _, value = setting.partition("=")
        git("config", name, value)


@pytest.mark.parametrize("kind", ["fsmonitor", "filter", "info filter", "process filter"])
def test_c_a_hostile_repository_runs_no_program(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ran = tmp_path / "repository", tmp_path / "ran"
    folder.mkdir()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o755)
    what = {"fsmonitor": "core.fsmonitor", "process filter": "filter.Own.x.process"}.get(kind, "filter.Own.x.clean")
    repository(folder, f"{what}={program}")
    if kind != "fsmonitor":
        attributes = folder / (".git/info/attributes" if kind == "info filter" else ".gitattributes")
        attributes.write_text("*.txt filter=Own.x\n")
        # As large, and written again: git has to look at its content.
        (folder / "file.txt").write_text("two")
    monkeypatch.chdir(folder)
    subprocess.run(["git", "status"], capture_output=True, check=False)
    assert ran.exists(), "the test does not show what it is for"
    ran.unlink()
    state = _git_state()
    assert not ran.exists()
    assert len(state["commit"]) == 40
    assert state["changed"] is (kind != "fsmonitor")


def test_c_the_state_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _git_state() is None
    repository(tmp_path)
    state = _git_state()
    assert state["changed"] is False
    (tmp_path / "file.txt").write_text("two")
    assert _git_state() == state | {"changed": True}


def killed_in(work: object) -> None:
    """Run in a process of its own, which kills itself."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_c_leftovers_of_killed_builds_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a process that lives stay, however old."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))

    def die(folder: Path) -> None:
        write_text(folder / "large", "x" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    killed_in(lambda: cache.keep("some", {"seed": 0}, die))
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    living = temporary_folder(tmp_path / "other-123")
    os.utime(living, (1, 1))
    cache.keep("another", {"seed": 1}, lambda folder: write_text(folder / "file", "x"))
    assert not left[0].exists()
    assert living.is_dir()
    assert len(list(tmp_path.iterdir())) == 2


def test_c_leftovers_of_killed_banks_are_removed_by_the_next_run(tmp_path: Path) -> None:
    def die() -> None:
        with atomic_folder(tmp_path / "run" / "banks" / "logits-1") as folder:
            write_text(folder / "values", "x")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(die)
    assert list((tmp_path / "run" / "banks").iterdir())
    run(two_stages(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_c_clearing_a_bank_that_may_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crossdistill: Command
) -> None:
    prefill(taught(), tmp_path / "run")
    banks = tmp_path / "run" / "banks"
    real = os.mkdir

    def refused(path: str, *rest: object) -> None:
        if Path(path).parent == banks:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *rest)

    monkeypatch.setattr(os, "mkdir", refused)
    (bank,) = banks.iterdir()
    assert f"{bank} cannot be removed: Permission denied" in crossdistill("bank", "clear", bank).complaint()
    assert bank.is_dir()


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_c_a_pipe_as_a_recipe_or_as_weights(tmp_path: Path, crossdistill: Command) -> None:
    """Nobody writes into them, so reading would wait for ever."""
    with raises(SettingError, "pipe"):
        make(str(pipe(tmp_path / "recipe.yaml")), [])
    with raises(SettingError, "pipe"):
        make(f"{pipe(tmp_path / 'recipe.py')}:f", [])
    with raises(DataError, "pipe"):
        read_weights(pipe(tmp_path / "weights.safetensors"))
    out = tmp_path / "out"
    out.mkdir()
    pipe(out / "recipe.yaml")
    assert "pipe" in crossdistill("run", out, "--resume").complaint()
    assert "pipe" in crossdistill("eval", out).complaint()


@pytest.mark.parametrize("where", ["import", "call"])
@pytest.mark.parametrize("what", ["sys.exit(0)", "raise SystemExit('leave')", "raise BaseException('odd')"])
def test_c_a_recipe_file_that_leaves(where: str, what: str, tmp_path: Path, crossdistill: Command) -> None:
    file = tmp_path / "leaving.py"
    body = f"{what}\n" if where == "import" else ""
    file.write_text(f"import sys\n{body}def made():\n    {what}\n")
    text = crossdistill("run", f"{file}:made").complaint()
    assert str(file) in text
    assert what.partition("(")[0].removeprefix("raise ").replace("sys.exit", "SystemExit") in text


def test_c_numbers_without_end(crossdistill: Command) -> None:
    with raises(RecipeError, "seeds"):
        Grid.parse("av-digits", seeds=10**12)
    assert crossdistill("compare", "av-digits", "--seeds", 10**12, "--dry-run").status == 2
    assert crossdistill("run", "av-digits/kd", "--tiny", "--dry-run", "--timed-steps", 10**9).status == 2


def test_c_an_empty_folder_name(crossdistill: Command) -> None:
    """It would be the working folder."""
    for words in (["run", "av-digits/kd", "--tiny"], ["compare", "av-digits"], ["bank", "fill", "av-digits/kd"]):
        said = crossdistill(*words, "--out", "")
        assert said.status == 2
        assert "--out" in said.err
    with raises(SettingError, "empty"):
        run(two_stages(), "")
    assert not list(Path().iterdir())
