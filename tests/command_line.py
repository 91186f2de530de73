"""The command line as tests use it: in this process, or as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from crossdistill.cli import main as cli

MOST_SENTENCES = 2000
"""Characters that a person reads without being lost."""


@dataclass(frozen=True)
class Said:
    """What a command line left behind."""

    status: int
    out: str
    err: str

    def complaint(self) -> str:
        """Its one message, after a look at its form: no traceback, one paragraph, nothing endless."""
        assert self.status in {1, 2}, (self.status, self.err)
        lines = self.err.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("crossdistill: ")), None)
        assert start is not None, self.err
        text = "\n".join(lines[start:]).strip()
        assert "Traceback" not in self.err + self.out, self.err
        assert "\n\n" not in text, text
        assert len(text) < MOST_SENTENCES, text
        # What follows the first line is a list.
        assert all(line.startswith("  - ") for line in text.splitlines()[1:]), text
        return text


Command = Callable[..., Said]
"""`crossdistill("run", ...)`."""


def called(*words: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """`crossdistill ...` in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["crossdistill", *map(str, words)])
    status = 0
    try:
        cli.main()
    except SystemExit as ending:
        status = int(ending.code or 0)
    out, err = capsys.readouterr()
    return Said(status, out, err)


def command(*words: object) -> list[str]:
    """`python -m crossdistill ...` with this Python."""
    return [sys.executable, "-m", "crossdistill", *map(str, words)]


def process(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Said:
    """`python -m crossdistill ...` as a real process."""
    return finished(command(*words), cwd=cwd, env=env, timeout=timeout)


def finished(
    words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Said:
    """Any process, run to its end; one that takes too long is ended with all that it started."""
    child = subprocess.Popen(
        list(words),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise
    return Said(child.returncode, out, err)


def has(said: Said, *words: str) -> None:
    """Assert that a command complains in these words."""
    text = said.complaint()
    missing = [word for word in words if word not in text]
    assert not missing, (missing, text)
