"""The environment of a run (versions, device, threads, ranks): stored at its start, compared when it is resumed."""

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crossdistill import __version__
from crossdistill.errors import ResumeError, RunError
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.files import read_sealed, write_sealed

ENVIRONMENT = "environment.json"
MOST_THREADS = 4096
"""Largest plausible number of threads; a larger stored one means damage."""


def describe(devices: Devices, seed: int) -> dict[str, Any]:
    """Versions, device, threads, ranks, the state of the working folder's git repository, and the seed."""
    return {
        "crossdistill": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": str(devices.device),
        "device_name": torch.cuda.get_device_name(devices.device)
        if devices.device.type == "cuda"
        else platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": devices.ranks,
        "seed": seed,
        "git": _git_state(),
    }


def stored(out: Path) -> dict[str, Any] | None:
    """The stored environment of a run folder; None if there is none.

    Raises:
        RunError: the file is damaged.
    """
    path = out / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        environment = read_sealed(path)
        torch.device(environment["device"])
        if not (isinstance(environment["threads"], int) and 1 <= environment["threads"] <= MOST_THREADS):
            raise ValueError(f"threads: {environment['threads']!r}")
        int(environment["seed"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{path} is damaged: {' '.join(str(error).split())}. A resumed run needs it to compute the same numbers; "
            "start anew in another folder with --out"
        ) from error
    return environment


def store(out: Path, devices: Devices, seed: int, recipe: str) -> None:
    """Write the environment of a new run, and the hash of its recipe.

    Raises:
        StorageError: it could not be written.
    """
    write_sealed(out / ENVIRONMENT, {**describe(devices, seed), "recipe": recipe})


def go_back_to(out: Path, devices: Devices) -> None:
    """Check that the environment matches the one that the run was started in, and restore its thread count.

    Raises:
        ResumeError: ranks, versions or kind of device differ, on which the numbers depend; names the difference.
    """
    before = stored(out)
    if before is None:
        return
    now = describe(devices, before["seed"])
    for name, what, why in (
        ("ranks", "the number of processes", "they share the rows of each step, so the results would differ"),
        ("crossdistill", "the version of crossdistill", "another version may compute other numbers"),
        ("torch", "the version of torch", "another version may round differently"),
    ):
        if before.get(name) != now[name]:
            raise ResumeError(
                f"{out} cannot be resumed: {what} was {before.get(name)} when it was started, and is {now[name]} now; "
                f"{why}. Resume it as it was started, or start anew in another folder with --out"
            )
    if torch.device(before["device"]).type != devices.device.type:
        raise ResumeError(
            f"{out} cannot be resumed: it was started on {before['device']}, and this is {devices.device}; resume it "
            "on the same kind of device, or start anew in another folder with --out"
        )
    torch.set_num_threads(before["threads"])


def _git_state() -> dict[str, Any] | None:
    """The commit of the working folder's repository, and whether files differ from it; None without a repository.

    The settings of a repository can name programs (`core.fsmonitor`, filters, hooks, transports): none is executed.
    """
    try:
        configured = _git(
            "config", "--show-scope", "--name-only", "--get-regexp", r"^filter\..*\.(clean|smudge|process)$"
        )
    except subprocess.CalledProcessError as error:
        if error.returncode != 1:  # 1: there are none
            return None
        configured = ""
    except (OSError, subprocess.SubprocessError):
        return None
    pairs = [line.partition("\t") for line in configured.splitlines()]
    filters = {name.rpartition(".")[0] for scope, _, name in pairs if scope in {"local", "worktree", "command"}}
    off = [f"{name}.{what}=" for name in sorted(filters) for what in ("clean", "smudge", "process")]
    off += [f"{name}.required=false" for name in sorted(filters)]
    try:
        changed = _git("status", "--porcelain", "--ignore-submodules=all", settings=off)
        return {"commit": _git("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str, settings: Sequence[str] = ()) -> str:
    options = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", "core.pager=cat", *settings)
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
    }
    process = subprocess.run(
        ["git", "--no-pager", *(part for text in options for part in ("-c", text)), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        env=environment,
    )
    return process.stdout.strip()
