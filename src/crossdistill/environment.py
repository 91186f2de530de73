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
from crossdistill.errors import ResumeError
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


def settle(out: Path, where: Devices, seed: int) -> dict[str, Any]:
    """Store the environment of a new run, or return to that of a resumed one (its thread count above all).

    Raises:
        ResumeError: the world size or the kind of device is another one now; says which.
    """
    path = out / ENVIRONMENT
    now = describe(where, seed)
    if not path.is_file():
        if where.is_main:
            write_json(path, now)
        return now
    stored: dict[str, Any] = json.loads(path.read_text())
    for name, why in (
        ("ranks", "rows are shared among ranks, so the numbers would be others"),
        ("torch", "another version may round otherwise"),
    ):
        if stored.get(name) != now[name]:
            raise ResumeError(
                f"{out} was started with {name} = {stored.get(name)}, now it is {now[name]}: {why}. Resume as it was "
                "started, or start anew in another folder"
            )
    if torch.device(stored["device"]).type != where.device.type:
        raise ResumeError(f"{out} was started on {stored['device']}, now it is {where.device}; resume on the same kind")
    torch.set_num_threads(stored["threads"])
    return stored


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
