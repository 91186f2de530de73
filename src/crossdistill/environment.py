"""What a run was started with besides its recipe: decided once, stored, and reused when it is resumed."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from crossdistill import __version__
from crossdistill.devices import Devices
from crossdistill.errors import ResumeError, RunError
from crossdistill.storage import write_json

ENVIRONMENT = "environment.json"


def describe(where: Devices, seed: int) -> dict[str, Any]:
    """Versions, device, threads, ranks, the state of the working folder's git repository, and the seed."""
    return {
        "crossdistill": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": str(where.device),
        "device_name": torch.cuda.get_device_name(where.device) if where.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": where.ranks,
        "seed": seed,
        "git": _git_state(),
    }


def stored(out: Path) -> dict[str, Any] | None:
    """What a run folder says of where its run was started; None when there is none.

    Raises:
        RunError: it is damaged.
    """
    path = out / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; choose another folder") from error
    return found


def store(out: Path, where: Devices, seed: int) -> None:
    """Remember where a new run is started.

    Raises:
        StorageError: it could not be written.
    """
    if not (out / ENVIRONMENT).is_file():
        write_json(out / ENVIRONMENT, describe(where, seed))


def go_back_to(out: Path, where: Devices) -> None:
    """Return to what a run was started with (its thread count above all).

    Raises:
        ResumeError: what the numbers depend on is another one now; says what.
    """
    before = stored(out)
    if before is None:
        return
    now = describe(where, before["seed"])
    for name, what, why in (
        ("ranks", "the number of processes", "they share the rows of each step, so the numbers would be others"),
        ("crossdistill", "the version of crossdistill", "another one may compute otherwise"),
        ("torch", "the version of torch", "another one may round otherwise"),
    ):
        if before.get(name) != now[name]:
            raise ResumeError(
                f"{out} cannot be resumed: {what} was {before.get(name)} when it was started, and is {now[name]} now; "
                f"{why}. Resume it as it was started, or start anew in another folder with --out"
            )
    if torch.device(before["device"]).type != where.device.type:
        raise ResumeError(
            f"{out} was started on {before['device']}, and this is {where.device}; resume it on the same kind of "
            "device, or start anew in another folder with --out"
        )
    torch.set_num_threads(before["threads"])


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=10, check=True, env={**os.environ, "LC_ALL": "C"}
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
