"""Whose a run's folder is: a new run takes it, the same run goes on in it, another one is refused."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from crossdistill.devices import Devices
from crossdistill.environment import go_back_to, store, stored
from crossdistill.errors import ResumeError, RunError
from crossdistill.recipe import Recipe
from crossdistill.report import RESULTS, Report
from crossdistill.storage import write_text

RECIPE = "recipe.yaml"


def device_for(out: Path, recipe: Recipe, resume: bool) -> str:
    """The device to compute on: what "auto" stood for when the run was started, where it goes on."""
    before = stored(out) if resume and recipe.device == "auto" else None
    return recipe.device if before is None else str(before["device"]).partition(":")[0]


def examine(out: Path, recipe: Recipe, resume: bool, where: Devices) -> Report | None:
    """Look whether the folder is free, or this very run's; give the report if that is finished.

    Raises:
        RunError: it holds a run, and `resume` was not asked for.
        ResumeError: it holds a run of another recipe, or one that was started elsewhere; says what differs.
    """
    path = out / RECIPE
    if path.is_file():
        if not resume:
            raise RunError(
                f"{out} holds a run already; go on with --resume, or choose another folder with --out, or remove it "
                "(in Python: run(recipe, out, resume=True))"
            )
        # The same recipe may have been made in another way.
        then, now = (plain | {"origin": None} for plain in (_read(path), yaml.safe_load(recipe.to_yaml())))
        differences = _differences(then, now)
        if differences:
            raise ResumeError(
                f"{out} was started with another recipe; resume it with the same, or choose another folder. "
                "What differs:\n" + "\n".join(differences)
            )
        if (out / RESULTS).is_file():
            return Report.load(out)
        go_back_to(out, where)
    where.wait()
    return None


def take(out: Path, recipe: Recipe, where: Devices) -> None:
    """Make the folder this run's, once nothing that can be known beforehand stands in its way.

    Raises:
        StorageError: it cannot be written.
    """
    if where.is_main:
        # What a killed process was writing at that moment; nobody else writes here.
        for folder in (out, out / "stages", out / "banks"):
            for path in folder.glob(".*.tmp"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        store(out, where, recipe.seed)
        if not (out / RECIPE).is_file():
            write_text(out / RECIPE, recipe.to_yaml())
    where.wait()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged: {' '.join(str(error).split())}; choose another folder") from error


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
        # Of long lists the names say more than their whole content.
        then, now = ([one.get("name", one) if isinstance(one, dict) else one for one in some] for some in (then, now))
    return [] if then == now else [f"  - {path}: was {then!r}, is {now!r}"]
