"""Recipes for a user's own files: `table/METHOD` and `folder/METHOD`.

crossdistill run table/kd --set data.path=clips.csv --set data.inputs.sound=file --set data.target=word
crossdistill run folder/kd --set data.path=pictures --set student=cifar-resnet8
crossdistill compare clips.csv --methods supervised,kd
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from crossdistill.data import DATA, find_data
from crossdistill.data.config import DataConfig
from crossdistill.data.content import on_terminal
from crossdistill.data.dataset import Dataset
from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.overrides import sentences
from crossdistill.recipe import Recipe
from crossdistill.recipes.own_data import check_labels, setup_for
from crossdistill.recipes.richkd import with_default_cnn
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Seed
from crossdistill.recipes.stages import recipe

TABLE, FOLDER = "table", "folder"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of tables that are given by their path."""
LOADED_LIMIT = 2
_LOADED: dict[str, Dataset] = {}


def loaded(config: DataConfig) -> Dataset:
    """The data of a configuration, of which the latest are kept: a recipe reads their shapes, then a run reads them."""
    key = config.model_dump_json() + _changed(config)
    if key not in _LOADED:
        while len(_LOADED) >= LOADED_LIMIT:
            del _LOADED[next(iter(_LOADED))]
        # The first start checks every file.
        with on_terminal() as progress:
            _LOADED[key] = config.load(progress)
    return _LOADED[key]


def _changed(config: DataConfig) -> str:
    """Size and time of a table's file: a program that changes it and asks again gets the new rows."""
    path = getattr(config, "path", None)
    if path is None or not path.is_file():
        return ""
    status = path.stat()
    return f" {status.st_size} {status.st_mtime_ns}"


def is_file_data(name: str) -> bool:
    """Whether data are named `table` or `folder`, or by the path of one; a name of the table of data comes first."""
    if name in DATA:
        return name in (TABLE, FOLDER)
    return name.lower().endswith(SUFFIXES) or os.path.isdir(name)


def short_name(data: str) -> str:
    """A name for the folder of results: of FILE.py:FUNCTION both, of a table or folder the last part of its path."""
    source, _, function = data.rpartition(":")
    return f"{Path(source).stem}-{function}" if source else Path(data).resolve().stem if is_file_data(data) else data


def config_of(name: str, settings: Mapping[str, Any]) -> DataConfig:
    """The configuration of `table` or `folder`, or of the path of one.

    Raises:
        RecipeError: a setting is invalid; lists all faults.
        SettingError: nothing names the path.
    """
    kind = name if name in (TABLE, FOLDER) else FOLDER if os.path.isdir(name) else TABLE
    path = {} if name == kind else {"path": name}
    known = find_data(kind).model_fields
    unknown = [
        f"data.{field}: {kind} has no such field; {nearest(field, known)}" for field in settings if field not in known
    ]
    if unknown:
        raise RecipeError(name, unknown)
    try:
        config = find_data(kind).model_validate({"name": kind, **path, **settings})
    except ValidationError as error:
        raise RecipeError(name, [f"data.{text}" for text in sentences(error)]) from error
    if getattr(config, "path", None) is None:
        raise SettingError(f"{name} needs your data: --set data.path={kind.upper()}")
    return config


def setup_of_files(
    name: str,
    *,
    data: Mapping[str, Any] | None = None,
    student: str | None = None,
    teachers: Kind | Mapping[str, str | Mapping[str, Any]] | None = None,
    labelled: float = 1.0,
    seed: int = 0,
    epochs: int | None = None,
) -> ExperimentSetup:
    """The setup of `table` or `folder`, or of the path of one; networks fit the data (see `setup_for`).

    Raises:
        RecipeError: a setting is invalid.
        DataError: all faults of the files.
        SettingError: a network's name is unknown, or nothing names the path.
    """
    config = config_of(name, {"labelled": labelled, "label_seed": seed, **(data or {})})
    dataset, named = loaded(config), teachers if isinstance(teachers, Mapping) else None
    check_labels(dataset, named or {})
    return setup_for(config, dataset, student=student, teachers=named, epochs=epochs, labelled=config.labelled)


def from_files(
    name: str,
    method: str,
    *,
    data: Mapping[str, Any] | None = None,
    student: str | None = None,
    teachers: Kind | Mapping[str, str | Mapping[str, Any]] | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    epochs: int | None = None,
) -> Recipe:
    """A method on the rows of a table, or on the files of a folder.

    `student` is a modality or a network's name; `teachers.NAME` is a network's name, whose settings
    are `teachers.NAME.tune` and so on, or `teachers` is a kind of teachers.
    """
    if isinstance(teachers, Mapping):
        teachers = with_default_cnn(method, teachers)
    setup = setup_of_files(
        name, data=data, student=student, teachers=teachers, labelled=labelled, seed=seed, epochs=epochs
    )
    kind = None if isinstance(teachers, Mapping) else teachers
    return recipe(setup, method, student=next(iter(setup.networks)), teachers=kind, seed=seed, control=control)
