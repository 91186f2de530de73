"""The command line in this process, the tiny data behind it, and a run that is finished already."""

from pathlib import Path

import pytest
from command_line import Command, called

from crossdistill.recipes import make
from crossdistill.training.runner import run


@pytest.fixture
def crossdistill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """`crossdistill("run", ...)` in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: called(*words, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture(scope="session")
def finished_run(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny av-digits/supervised, read and never written by tests."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(make("av-digits/supervised", []).tiny(), out)
    return out
