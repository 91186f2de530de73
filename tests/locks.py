"""Locks whose holder is another process or machine, as `filelock` writes them."""

import os
from pathlib import Path

from crossdistill.runtime.lock import STALE_S, _host


def held_elsewhere(
    path: Path, host: str | None = "elsewhere", process: int = 7, start: int | None = None, stale_s: float = STALE_S
) -> None:
    """A lock of a process of which nothing can be known but its silence; of this machine where `host` is None."""
    lines = [
        *("filelock/2", f"pid={process}", f"host={_host() if host is None else host}", "mode=lease"),
        *(f"token={'0' * 32}", f"duration={stale_s!r}"),
        *([] if start is None else [f"start={start}"]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.made")
    made.write_text("\n".join(lines) + "\n")
    os.replace(made, path)
