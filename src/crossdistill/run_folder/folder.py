"""Ownership of a run folder: a new run claims it, the same run resumes in it, any other run is rejected."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from crossdistill.errors import CrossdistillError, ResumeError, RunError, SettingError, StorageError
from crossdistill.recipe import LIVE_RECIPE, Recipe
from crossdistill.report import RESULTS, Report, fault
from crossdistill.run_folder.environment import go_back_to, store, stored
from crossdistill.run_folder.student_files import STUDENT_FOLDER, read_config
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.files import file_fault, sweep, write_text
from crossdistill.runtime.hashing import bytes_hash, file_hash
from crossdistill.runtime.lock import Holder, Lock
from crossdistill.runtime.plain_yaml import parse_yaml, read_yaml

RECIPE = "recipe.yaml"
LOCK = ".in-use"
MOST_LINE = 1000
SOUND = "sound"
INITIAL = "initial"
"""Folder of the initial weights of live networks; see `initial_weights.py`."""

Waiting = Callable[[Holder], None]


def run_folder(out: Path | str) -> Path:
    """The path of a run's folder.

    Raises:
        SettingError: the text is empty, which would mean the working folder.
    """
    if isinstance(out, str) and not out.strip():
        raise SettingError("the run's folder is empty; give one, as in --out runs/first (the working folder is '.')")
    return Path(out)


def run_folders(out: Path | str, share: Path | str | None, banks: Path | str | None) -> tuple[Path, Path | None, Path]:
    """The folders of a run, of shared stages (None: not shared) and of banks (by default in one of the others).

    Raises:
        SettingError: a text is empty, which would mean the working folder; names the argument.
    """
    for argument, path in (("share", share), ("banks", banks)):
        if isinstance(path, str) and not path.strip():
            raise SettingError(f"{argument}: the path is empty; give a folder, or None (the working folder is '.')")
    run, shared = run_folder(out), None if share is None else Path(share)
    return run, shared, (shared or run) / "banks" if banks is None else Path(banks)


@contextmanager
def held(out: Path, waiting: Waiting | None = None) -> Iterator[None]:
    """Hold the lock of a run folder in a block, so that only one process writes to it.

    With `waiting`, wait for the lock; `waiting` is called once with its holder. Folders created only for the lock are
    removed.

    Raises:
        RunError: another process holds the lock, or took it over while this process was suspended; names the folder.
        StorageError: the folder cannot be written.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    lock = Lock(out / LOCK)
    try:
        if waiting is None and not lock.acquire():
            holder = lock.holder()
            shown = "a process that has just started" if holder is None else holder
            raise RunError(f"{out} is being computed by {shown}; wait for it, or end it and go on with --resume")
        with lock.held(waiting) if waiting is not None else closing(lock):
            try:
                yield
            finally:
                if not (out / RECIPE).is_file():
                    # The run did not start, so its initial weights are not needed.
                    shutil.rmtree(out / INITIAL, ignore_errors=True)
        if lock.lost:
            raise RunError(
                f"another process took {out} over while this one was suspended, and both may have written into it; "
                "remove the folder and run again"
            )
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def held_by_all(out: Path, devices: Devices, waiting: Waiting | None = None) -> Iterator[None]:
    """`held` for all ranks of a run together: the main rank holds the lock."""
    if devices.ranks == 1:
        with held(out, waiting):
            yield
        return
    lock = held(out, waiting)
    refused: CrossdistillError | None = None
    if devices.is_main:
        try:
            lock.__enter__()
        except CrossdistillError as error:
            refused = error
    said = devices.same("" if refused is None else str(refused))
    if said:
        raise refused or RunError(said)
    try:
        yield
    finally:
        if devices.is_main:
            lock.__exit__(None, None, None)


def drop_leftover(out: Path) -> None:
    """Remove the lock file of a run that was killed while it released its lock, if no process holds it."""
    lock = Lock(out / LOCK)
    # A finished run may be on a read-only disk.
    with suppress(StorageError):
        if any(out.glob(f"{LOCK}*")) and lock.acquire():
            lock.release()


def resume_command(out: Path, recipe: Recipe, ranks: int = 1) -> str:
    """The command that resumes this run, or the call in Python if no command can make the recipe."""
    command = "crossdistill" if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m crossdistill"
    if not recipe.live:
        return f"{command} run {shlex.quote(str(out))} --resume"
    if recipe.origin is not None:
        return f"{command} run {recipe.origin} --out {shlex.quote(str(out))} --resume"
    return f"run(recipe, {str(out)!r}, resume=True) in the program that made the recipe"


def unfinished(out: Path) -> str:
    """The end of an error's sentence: how to finish the run of this folder."""
    holder = Lock(out / LOCK).holder()
    if holder is not None:
        return f"it is being computed by {holder}"
    with suppress(OSError, UnicodeDecodeError), (out / RECIPE).open(encoding="utf-8") as file:
        first, second = file.readline(MOST_LINE), file.readline(MOST_LINE).strip()
        if first.startswith(LIVE_RECIPE):
            command = second.partition(": ")[2]
            again = f"{command} --out {shlex.quote(str(out))} --resume" if command else "the program that made it"
            return f"finish its run with: {again if again.isprintable() else 'the command in its recipe.yaml'}"
    return f"finish its run with: crossdistill run {shlex.quote(str(out))} --resume"


def device_for(out: Path, recipe: Recipe, resume: bool) -> str:
    """The recipe's device; for a resumed run with "auto", the one that the run was started on."""
    before = stored(out) if resume and recipe.device == "auto" else None
    return recipe.device if before is None else str(before["device"]).partition(":")[0]


def check_folder(out: Path, recipe: Recipe, resume: bool, devices: Devices) -> tuple[Report | None, str | None]:
    """Check that the folder is free or holds this run.

    Returns:
        The report, if the run is finished and undamaged, or else None; and the damage of a finished run, or else None.

    Raises:
        RunError: it holds a run, and `resume` is False.
        ResumeError: it holds a run of another recipe or environment; lists the differences.
    """
    path = out / RECIPE
    if path.is_file():
        if not resume:
            raise RunError(
                f"{out} holds a run already; go on with: {resume_command(out, recipe)}. Or choose another folder with "
                "--out, or remove it"
            )
        # The command that made the recipe may differ.
        then, now = (plain | {"origin": None} for plain in (_read(path), parse_yaml(recipe.to_yaml())))
        differences = _differences(then, now)
        if differences:
            raise ResumeError(
                f"{out} was started with another recipe; resume it with the same, or choose another folder. "
                "Differences:\n" + "\n".join(differences)
            )
        unchanged(out)
        # Decided by the main rank, since files may change while ranks read them.
        damage = devices.same((_damage(out) or SOUND) if (out / RESULTS).is_file() else "")
        if damage == SOUND:
            return Report.load(out), None
        go_back_to(out, devices)
        devices.wait()
        return None, damage or None
    devices.wait()
    return None, None


def _damage(out: Path) -> str | None:
    """The damage of a finished run's results or student's folder, as text; None if they are intact."""
    damage = fault(out)
    if damage is None:
        try:
            read_config(out / STUDENT_FOLDER)
        except CrossdistillError as error:
            return str(error)
    return damage


def unchanged(out: Path) -> None:
    """Check that a run's recipe.yaml has the hash stored at the start of the run.

    Raises:
        RunError: it has not.
    """
    before = stored(out)
    wanted = None if before is None else before.get("recipe")
    if wanted is not None and (file_fault(out / RECIPE) is not None or file_hash(out / RECIPE) != wanted):
        raise RunError(
            f"{out / RECIPE} is missing, or differs from the recipe that the run was started with. Restore it, or "
            "start anew in another folder with --out"
        )


def start_run(out: Path, recipe: Recipe, devices: Devices) -> None:
    """Start a run in its folder, after all checks: remove temporary files, write the environment and the recipe.

    Raises:
        StorageError: it cannot be written.
    """
    if devices.is_main:
        # Temporary files of a killed process. Only this process writes here; banks are filled by several processes.
        for folder in (out, out / "stages"):
            for path in folder.glob(".*.tmp"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        sweep(out / "banks")
        if not (out / RECIPE).is_file():
            # The recipe is written last: a folder without one holds no run.
            text = recipe.to_yaml()
            store(out, devices, recipe.seed, bytes_hash(text.encode()))
            write_text(out / RECIPE, text)
    devices.wait()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_yaml(path))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} is damaged: {' '.join(str(error).split())}. Restore it, or choose another folder"
        ) from error


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            line for key in keys for line in _differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            line for i, pair in enumerate(zip(then, now, strict=True)) for line in _differences(*pair, f"{path}.{i}")
        ]
    if isinstance(then, list) and isinstance(now, list):
        # Lists of different lengths are shown by the names of their items.
        then, now = (
            [item.get("name", item) if isinstance(item, dict) else item for item in items] for items in (then, now)
        )
    return [] if then == now else [f"  - {path}: was {then!r}, is {now!r}"]
