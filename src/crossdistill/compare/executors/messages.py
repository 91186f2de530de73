"""Messages of a worker that shares only a folder with this process: lines appended to a file."""

import json
import time
from pathlib import Path
from typing import Any

WRITE_EVERY_S = 1.0
FOLDER = "mail"
"""Folder of the message files in a comparison's folder, while its cells run."""


class Outbox:
    """The worker's end: steps are summed and written once a second, other messages immediately."""

    def __init__(self, path: Path, write_every_s: float = WRITE_EVERY_S) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._write_every_s = path, write_every_s
        self._steps = 0
        self._wrote = time.monotonic()

    def __call__(self, kind: str, value: Any) -> None:
        """Send one message."""
        if kind == "advance":
            self._steps += value
            if time.monotonic() - self._wrote < self._write_every_s:
                return
        lines = [["advance", self._steps]] if self._steps else []
        lines += [] if kind == "advance" else [[kind, value]]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._steps, self._wrote = 0, time.monotonic()


class Inbox:
    """The receiving end: the messages since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> list[tuple[str, Any]]:
        """New messages; incomplete lines are left for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                text = file.read()
        except FileNotFoundError:
            return []
        end = text.rfind(b"\n") + 1
        self._position += end
        return [(kind, value) for kind, value in map(json.loads, text[:end].splitlines())]
