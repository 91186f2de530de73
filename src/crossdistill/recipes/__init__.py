"""Experiments as typed functions. Short names are `DATA/METHOD`, from the tables `FAMILIES` and `PLANS`."""

import functools
import importlib
import inspect
import os
import shlex
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError, validate_call

from crossdistill.backends.names import backend_of
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.errors import CrossdistillError, RecipeError, SettingError, nearest
from crossdistill.overrides import below, explained, parse_override, sentences
from crossdistill.recipe import Recipe
from crossdistill.recipes.named_networks import with_names
from crossdistill.recipes.own_files import config_of, from_files, is_file_data, setup_of_files
from crossdistill.recipes.own_setup import LIVE, maker, setup_of
from crossdistill.recipes.recipe_file import load_file
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.recipes.stages import PLANS
from crossdistill.runtime.files import NO_FILE, file_fault

FAMILIES: Mapping[str, str] = {
    "av-digits": "crossdistill.recipes.av_digits:av_digits",
    "av-mnist": "crossdistill.recipes.av_mnist:av_mnist",
    "cifar10": "crossdistill.recipes.cifar:cifar10",
    "cifar100": "crossdistill.recipes.cifar:cifar100",
    "imagenet": "crossdistill.recipes.imagenet:imagenet",
    "tiny-imagenet": "crossdistill.recipes.imagenet:tiny_imagenet",
}
"""Data by name, each with the function that builds the recipe of a method; imported on first use."""

OWN_METHODS: Mapping[str, str] = {"speech-music": "crossdistill.recipes.speech_music:speech_music"}
"""Data whose recipes are not those of `PLANS`, each with the function that builds them; its module lists `METHODS`."""

Maker = Callable[..., Recipe]


def __getattr__(name: str) -> Any:
    if name != "family_kit":
        raise AttributeError(f"module 'crossdistill.recipes' has no attribute {name!r}")
    warnings.warn(
        "family_kit is called family_setup now; the old name will be removed in version 0.2", DeprecationWarning, 2
    )
    return family_setup


def family_setup(data: str) -> ExperimentSetup:
    """The setup that the recipes for these data share, with its defaults."""
    source, _, function = FAMILIES[data].partition(":")
    module = importlib.import_module(source)
    # A file with the recipes of several data sets has a setup for each.
    make_setup: Callable[[], ExperimentSetup] = getattr(module, f"{function}_setup", None) or module.setup
    return make_setup()


def is_own(data: str) -> bool:
    """Whether data are named by a function that returns an `ExperimentSetup`, or by a program's own setup."""
    return ":" in data


def setup_by_name(data: str, settings: Sequence[str] = ()) -> ExperimentSetup:
    """The setup of a family, of `FILE.py:FUNCTION`, of a table or folder, or of a running program.

    `settings` are those of a comparison; of a table or folder, they name its columns and networks.

    Raises:
        SettingError: there is none; the message names the nearest.
        RecipeError: a setting of a table or folder is invalid.
        DataError: faults of the files.
    """
    if is_file_data(data):
        parameters = inspect.signature(setup_of_files).parameters
        arguments, _, _, faults = _arguments(settings, parameters)
        if faults:
            raise RecipeError(data, faults)
        return setup_of_files(data, **arguments)
    if is_own(data):
        return setup_of(data, None if data.startswith(LIVE) else _function(data))
    if data not in FAMILIES:
        raise SettingError(
            f"no recipes are made for {data!r}; {nearest(data, FAMILIES)}. Your own data: a table (csv, tsv, jsonl, "
            "parquet), a folder, or FILE.py:FUNCTION, whose function returns an ExperimentSetup"
        )
    return family_setup(data)


def data_by_name(data: str, settings: Sequence[str] = ()) -> tuple[DataConfig | Dataset | ExperimentSetup, list[str]]:
    """The data of a table, a folder, a name of the table of data, or a function that returns data or a setup.

    Settings of a table or folder (`data.target=...`) are applied to it; the others are returned.

    Raises:
        SettingError: there is none, or the function returns something else.
    """
    if is_file_data(data):
        of_data = [text for text in settings if text.lstrip().startswith("data.")]
        arguments, _, _, faults = _arguments(of_data, inspect.signature(setup_of_files).parameters)
        if faults:
            raise RecipeError(data, faults)
        return config_of(data, arguments.get("data", {})), [text for text in settings if text not in of_data]
    if is_own(data):
        try:
            made = _function(data)()
        except CrossdistillError:
            raise
        except Exception as error:  # the user's code may raise any error
            raise SettingError(f"{data} fails: {_where(error)}") from error
        if not isinstance(made, DataConfig | Dataset | ExperimentSetup):
            raise SettingError(f"{data} returned a {type(made).__name__}; wanted a Dataset or an ExperimentSetup")
        return made, list(settings)
    if data in FAMILIES:
        return family_setup(data), list(settings)
    raise SettingError(
        f"{data!r} is no table (csv, tsv, jsonl, parquet) and no folder, and no data are called that; "
        f"{nearest(data, FAMILIES)}"
    )


def names_student(data: str) -> bool:
    """Whether the setting `student` of a family's recipes names a network, and not only a modality."""
    return data in FAMILIES and inspect.signature(_function(FAMILIES[data])).parameters["student"].annotation is str


def names() -> list[str]:
    """All short names."""
    own = [f"{data}/{method}" for data in OWN_METHODS for method in own_methods(data)]
    return [*(f"{data}/{method}" for data in FAMILIES for method in PLANS), *own]


def own_methods(data: str) -> Mapping[str, Any]:
    """The methods of data in `OWN_METHODS`, by name, each with its function."""
    methods: Mapping[str, Any] = importlib.import_module(OWN_METHODS[data].partition(":")[0]).METHODS
    return methods


def find(name: str) -> Maker:
    """The function behind `DATA/METHOD`, `package.module:function` or `path/to/file.py:function`.

    DATA may also be `path/to/file.py:function`, if the function returns an `ExperimentSetup`.

    Raises:
        SettingError: there is no such recipe; the message names the nearest.
    """
    data, slash, method = name.rpartition("/")
    if slash and ":" not in method and not name.endswith(".py") and (is_own(data) or is_file_data(data)):
        if method not in PLANS:
            raise SettingError(f"no method is called {method!r}; {nearest(method, PLANS)}")
        if is_file_data(data):
            return functools.partial(from_files, data, method)
        return maker(data, None if data.startswith(LIVE) else _function(data), method)
    if ":" in name:
        return _function(name)
    if name.endswith(".py"):
        raise SettingError(f"recipe {name!r} names a file without its function: give {name}:FUNCTION")
    data, slash, method = name.partition("/")
    if slash and data in OWN_METHODS:
        if method not in own_methods(data):
            raise SettingError(f"no recipe of {data} is called {method!r}; {nearest(method, own_methods(data))}")
        return functools.partial(_function(OWN_METHODS[data]), method)
    if not slash or data not in FAMILIES or method not in PLANS:
        wrong = nearest(data, [*FAMILIES, *OWN_METHODS]) if data not in FAMILIES else nearest(method, PLANS)
        raise SettingError(
            f"no recipe is called {name!r}. Of its two parts, DATA/METHOD, "
            f"{'the data' if data not in FAMILIES else 'the method'} is unknown: {wrong}. Other recipes are given as "
            "package.module:function, path/to/file.py:function or a run's recipe.yaml"
        )
    return functools.partial(_function(FAMILIES[data]), method)


def make(name: str, settings: list[str], seed: int | None = None) -> Recipe:
    """A recipe by name or file, with settings: parameters of its function first, then fields of the recipe.

    Raises:
        RecipeError: every fault of the settings, collected.
        SettingError: there is no such recipe.
    """
    seeded = [] if seed is None else [f"seed={seed}"]
    # Not Path.is_dir, which raises an error for a name that no file can have.
    folder = os.path.isdir(name)
    if name.endswith((".yaml", ".yml")) or folder:
        path = Path(name) / "recipe.yaml" if folder else Path(name)
        if folder and file_fault(path) == NO_FILE:
            raise SettingError(
                f"no recipe can be read from {path}: {NO_FILE}. If a run was stopped in this folder, it was before its "
                "recipe was written, and nothing was done yet: start it again by its first command"
            )
        return Recipe.from_yaml(path).overridden([*settings, *seeded])
    make_recipe = find(name)
    parameters = inspect.signature(make_recipe).parameters
    # A table or folder builds its networks by name; elsewhere a student of another library replaces the recipe's.
    by_name = isinstance(make_recipe, functools.partial) and make_recipe.func is from_files
    by_name = by_name or name.partition("/")[0] in OWN_METHODS
    arguments, texts, others, faults = _arguments([*settings, *seeded], parameters, by_name=by_name)
    rest = [text for text in others if others[text].partition(".")[0] in Recipe.model_fields]
    unknown = [(text, path) for text, path in others.items() if text not in rest]
    known = [*parameters, *Recipe.model_fields]
    try:
        recipe = _call(name, make_recipe, arguments, texts, faults)
    except RecipeError as error:
        raise RecipeError(name, [*error.faults, *_unknown(name, unknown, known, None)]) from error
    faults += _unknown(name, unknown, known, recipe)
    origin = [
        shlex.quote(name),
        *(f"--set {shlex.quote(text)}" for text in settings),
        *([f"--seed {seed}"] if seeded else []),
    ]
    recipe = recipe.model_copy(update={"origin": " ".join(origin)})
    try:
        recipe = with_names(recipe, recipe.overridden(rest))
    except RecipeError as error:
        faults += error.faults
    if faults:
        raise RecipeError(name, faults)
    return recipe


def _arguments(
    settings: Sequence[str], parameters: Mapping[str, inspect.Parameter], *, by_name: bool = True
) -> tuple[dict[str, Any], dict[str, str], dict[str, str], list[str]]:
    """The arguments of a function, and their texts; the paths of other settings, by text; and faults.

    `by_name`: the function takes networks of other libraries by name.
    """
    arguments: dict[str, Any] = {}
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    faults: list[str] = []
    for text in settings:
        try:
            path, value = parse_override(text)
        except SettingError as error:
            faults.append(f"--set {text}: {error}")
            continue
        head = path.partition(".")[0]
        foreign = path == "student" and isinstance(value, str) and backend_of(value) is not None
        if path in parameters and (by_name or not foreign):
            arguments[path], texts[path] = value, text
        elif head in parameters and _takes_mapping(parameters[head].annotation):
            _put(arguments, path.split("."), value)
            texts[head] = text
        else:
            others[text] = path
    return arguments, texts, others, faults


def _takes_mapping(annotation: Any) -> bool:
    """Whether a parameter is a mapping, so that `--set PARAMETER.KEY=VALUE` sets an entry of it."""
    return any(get_origin(kind) is Mapping for kind in (annotation, *get_args(annotation)))


def _put(arguments: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set an entry of nested mappings; on the way, the short form of an input or a network becomes its long form."""
    short = "model" if path[0] == "teachers" else "column"
    *above, last = path
    for name in above:
        inner = arguments.get(name)
        arguments[name] = dict(inner) if isinstance(inner, Mapping) else {} if inner is None else {short: inner}
        arguments = arguments[name]
    # Settings of an entry that were given before its name stay.
    parts = arguments.get(last) if above and not isinstance(value, Mapping) else None
    arguments[last] = {**parts, short: value} if isinstance(parts, Mapping) else value


def _unknown(name: str, settings: Sequence[tuple[str, str]], known: Sequence[str], recipe: Recipe | None) -> list[str]:
    """Faults of settings with an unknown first name; with a `recipe`, they suggest a matching deeper path."""
    heads = [(text, path, path.partition(".")[0]) for text, path in settings]
    return [
        f"--set {text}: {name} has no parameter or field {head!r}; "
        f"{'' if recipe is None else below(recipe, path)}{nearest(head, known)}"
        for text, path, head in heads
    ]


def _call(name: str, maker: Maker, arguments: Mapping[str, Any], texts: Mapping[str, str], faults: list[str]) -> Recipe:
    """The recipe that a function returns. Arguments that it refuses become faults; it is called again without them.

    Raises:
        RecipeError: the call fails without them too, or the recipe is faulty.
        SettingError: the function returns no recipe, or raises an error.
    """
    title = f"partial({maker.func.__name__})" if isinstance(maker, functools.partial) else maker.__name__
    try:
        made = validate_call(maker)(**arguments)
    except ValidationError as error:
        if error.title != title:
            raise RecipeError(name, [*faults, *sentences(error)]) from error
        refused = set()
        for path, text in explained(error):
            if path[0] in arguments:
                refused.add(path[0])
                faults.append(f"--set {texts[path[0]]}: {text}")
            elif path[0] not in texts:
                faults.append(f"{path[0]}: {text}; give it with --set {path[0]}=...")
        if not refused:
            raise RecipeError(name, faults) from error
        accepted = {key: value for key, value in arguments.items() if key not in refused}
        return _call(name, maker, accepted, texts, faults)
    except CrossdistillError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise any error, or call sys.exit
        raise SettingError(f"recipe {name!r} fails: {_where(error)}") from error
    if not isinstance(made, Recipe):
        kind = type(made).__name__
        raise SettingError(f"{name} returned an object of type {kind}; a recipe function returns a crossdistill.Recipe")
    return made


def _where(error: BaseException) -> str:
    """The text of an exception, with the file and line that raised it."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return what
    frames = traceback.extract_tb(error.__traceback__)
    return f"{what} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else what


def _function(name: str) -> Maker:
    source, _, attribute = name.rpartition(":")
    try:
        module = load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except CrossdistillError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the import runs the user's code, which may call sys.exit
        if isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}."):
            raise SettingError(
                f"recipe {name!r}: there is no module {error.name!r}; is its folder on PYTHONPATH, or is it a path to "
                "a .py file?"
            ) from error
        raise SettingError(f"recipe {name!r}: {source} cannot be imported: {_where(error)}") from error
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
    if not hasattr(module, attribute):
        raise SettingError(f"recipe {name!r}: {source} has no function {attribute!r}; {nearest(attribute, functions)}")
    value = getattr(module, attribute)
    if not inspect.isfunction(value) and not isinstance(value, functools.partial):
        kind = type(value).__name__
        raise SettingError(
            f"recipe {name!r}: {attribute!r} is of type {kind}, not a function that returns a recipe; "
            f"{nearest(attribute, functions)}"
        )
    maker: Maker = value
    return maker
