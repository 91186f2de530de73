"""Experiments as typed functions. Short names are `DATA/METHOD`, made of the two tables here and in `plans`."""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, validate_call

from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.recipe import Recipe
from crossdistill.recipes.kit import Kit
from crossdistill.recipes.plans import PLANS
from crossdistill.settings import parse_override, sentences

FAMILIES: Mapping[str, str] = {
    "av-digits": "crossdistill.recipes.av_digits:av_digits",
    "av-mnist": "crossdistill.recipes.av_mnist:av_mnist",
}
"""Data by name, each with the function that makes any method's recipe for it; imported when asked for."""

Maker = Callable[..., Recipe]


def family_kit(data: str) -> Kit:
    """What the recipes for these data share, at its defaults."""
    source, _, _ = FAMILIES[data].partition(":")
    made: Kit = importlib.import_module(source).kit()
    return made


def names() -> list[str]:
    """All short names."""
    return [f"{data}/{method}" for data in FAMILIES for method in PLANS]


def find(name: str) -> Maker:
    """The function behind `DATA/METHOD`, `package.module:function` or `path/to/file.py:function`.

    Raises:
        SettingError: there is no such recipe; says the nearest.
    """
    if ":" in name:
        return _function(name)
    data, slash, method = name.partition("/")
    if not slash or data not in FAMILIES or method not in PLANS:
        raise SettingError(
            f"no recipe is called {name!r}; {nearest(name, names())}; or give package.module:function, "
            "path/to/file.py:function or a run's recipe.yaml"
        )
    return functools.partial(_function(FAMILIES[data]), method)


def make(name: str, settings: list[str], seed: int | None = None) -> Recipe:
    """A recipe by name or file, with settings: parameters of its function first, then fields of the recipe.

    Raises:
        RecipeError: every fault of the settings, collected.
        SettingError: there is no such recipe.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_dir():
        path = Path(name) / "recipe.yaml" if Path(name).is_dir() else Path(name)
        settings = settings + ([] if seed is None else [f"seed={seed}"])
        return Recipe.from_yaml(path).overridden(settings)
    maker = find(name)
    parameters = inspect.signature(maker).parameters
    given: dict[str, Any] = {}
    rest, faults = [], []
    for text in settings:
        try:
            key, value = parse_override(text)
        except SettingError as error:
            faults.append(str(error))
            continue
        head = key.partition(".")[0]
        if key in parameters:
            given[key] = value
        elif head in Recipe.model_fields:
            rest.append(text)
        else:
            known = [*parameters, *Recipe.model_fields]
            faults.append(f"--set {text}: {name} has no parameter or field {head!r}; {nearest(head, known)}")
    if seed is not None:
        if "seed" in parameters:
            given["seed"] = seed
        else:
            rest.append(f"seed={seed}")
    recipe = _call(name, maker, given, faults)
    origin = " ".join(
        [name, *(f"--set {text}" for text in settings), *([f"--seed {seed}"] if seed is not None else [])]
    )
    return recipe.model_copy(update={"origin": origin}).overridden(rest)


def _call(name: str, maker: Maker, given: Mapping[str, Any], faults: list[str]) -> Recipe:
    try:
        made = validate_call(maker)(**given) if not faults else None
        if made is None:
            # The values are checked all the same, so that all faults are seen at once.
            validate_call(maker)(**given)
    except ValidationError as error:
        faults = [*faults, *sentences(error)]
        raise RecipeError(name, faults) from error
    if faults:
        raise RecipeError(name, faults)
    if not isinstance(made, Recipe):
        raise SettingError(f"{name} returned a {type(made).__name__}; a recipe function returns a crossdistill.Recipe")
    return made


def _function(name: str) -> Maker:
    source, _, attribute = name.rpartition(":")
    try:
        module = _file_module(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"recipe {name!r}: {error}; is its folder on PYTHONPATH, or is it a path to a .py file?"
        ) from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingError(f"recipe {name!r}: {source} has no {attribute!r}; {nearest(attribute, functions)}")
    found = getattr(module, attribute)
    if not callable(found):
        raise SettingError(f"recipe {name!r}: {attribute!r} is no function")
    maker: Maker = found
    return maker


def _file_module(path: Path) -> Any:
    if not path.is_file():
        raise SettingError(f"recipe file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
