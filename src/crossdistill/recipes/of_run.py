"""The recipe of a run's folder, with the user's own networks and data, which no file can contain."""

import logging
import shlex
from pathlib import Path
from typing import Any

from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError
from crossdistill.models.own_network import LIVE
from crossdistill.network import Network
from crossdistill.recipe import Recipe, checked
from crossdistill.recipes import make
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.plain_yaml import read_yaml

_AROUND = {"student": {"model": "small-image"}, "stages": [{"method": "supervised", "epochs": 1}]}
"""The other fields of a recipe of which only the data are read."""

log = logging.getLogger("crossdistill")


def of_run(run: Path, source: str | None, settings: list[str], command: str) -> Recipe:
    """A run's recipe: from its `recipe.yaml`, with live objects from the function that the user names.

    The folder also names the function that built its recipe. That function is not run by itself: a folder from
    elsewhere would then choose the code to run. The error names it, and the user decides.

    Raises:
        SettingError: the recipe has live objects and no function was named, or it cannot be called.
        RecipeError: the recipe is faulty, or a setting is.
    """
    path = run / "recipe.yaml"
    plain = _plain(path)
    live = _live(plain, "data", "student")
    if source is None:
        if live:
            raise SettingError(f"{path}: {', '.join(live)}: {_hint(run, plain, command)}")
        if _live(plain, "teachers"):
            # Evaluation does not need the teachers.
            plain = {"data": plain.get("data"), "student": plain.get("student")}
            return checked({**_AROUND, **plain}, str(path)).overridden(settings)
        return Recipe.from_yaml(path).overridden(settings)
    later = [text for text in settings if text.startswith("data.")]
    made = make(source, [text for text in settings if text not in later])
    if plain and "data" not in live:
        # The data of the run: a recipe's tiny form has other data than the function returns.
        made = made.model_copy(update={"data": checked({**_AROUND, "data": plain.get("data")}, str(path)).data})
    elif plain and isinstance(made.data, Dataset) and made.data.fingerprint != _fingerprint(plain):
        log.warning("%s returns other data than those that %s was trained with", source, run)
    return made.overridden(later)


def module_of_run(source: str | None, settings: list[str]) -> Network | None:
    """The student's network from the function that the user names; None where it is in the table of models.

    Raises:
        SettingError: the function cannot be called, or returns no recipe.
    """
    student = None if source is None else make(source, settings).student
    return student if isinstance(student, Network) else None


def _plain(path: Path) -> dict[str, Any]:
    """The values in the file; empty where `Recipe.from_yaml` reports an error for it."""
    if file_fault(path) is not None:
        return {}
    try:
        values = read_yaml(path)
    except (OSError, SettingError):
        return {}
    return values if isinstance(values, dict) else {}


def _live(plain: dict[str, Any], *names: str) -> list[str]:
    """The fields among these that contain live objects."""
    fields = {name: plain[name] for name in names if isinstance(plain.get(name), dict)}
    parts = {name: value.values() if name == "teachers" else [value] for name, value in fields.items()}
    return [name for name, inner in parts.items() if any(isinstance(part, dict) and LIVE in part for part in inner)]


def _fingerprint(plain: dict[str, Any]) -> Any:
    data = plain.get("data")
    return data.get("fingerprint") if isinstance(data, dict) else None


def _hint(run: Path, plain: dict[str, Any], command: str) -> str:
    reason = (
        "built from objects of the program that trained it, which a file cannot store. Name the function that returns "
        "its recipe: "
    )
    words = _words(plain.get("origin"))
    again = " ".join(map(shlex.quote, ["crossdistill", command, str(run), "--recipe", *words]))
    return f"{reason}{again if words else f'{again} FILE.py:FUNCTION'}"


def _words(origin: Any) -> list[str]:
    """The function and settings of a recorded command, as arguments for another command."""
    try:
        words = shlex.split(origin) if isinstance(origin, str) and len(origin) < 2000 else []
    except ValueError:
        return []
    # Other commands have no --tiny; the data are in the folder's own recipe.
    words = [word for word in words if word != "--tiny"]
    arguments: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        arguments += [f"seed={word}"] if before == "--seed" else ["--set"] if word == "--seed" else [word]
    return arguments
