"""The command line in this process, for every noun."""

import pytest
from command_line import Command, called


@pytest.fixture
def crossdistill(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """`crossdistill("run", ...)` in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    return lambda *words: called(*words, capsys=capsys, monkeypatch=monkeypatch)
