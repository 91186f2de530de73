"""What a student's folder holds, and whether it still is what was written: looked at before anything is built."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from crossdistill.data.input_options import MOST_CLASSES, MOST_LABEL, MOST_NAME, MOST_NUMBERS, check_plain
from crossdistill.errors import DataError, RunError
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.hashing import file_hash, key_hash

WEIGHTS, CONFIG, PREPARATION, CARD = "model.safetensors", "config.json", "preparation.safetensors", "README.md"
STUDENT_FOLDER = "student"
"""Its name in a run's folder."""
FORMAT = 2
"""Raised when a folder of before cannot be read as one of now. 1 had no hashes."""

CONFIG_BYTES = 2**25

Name = Annotated[str, StringConstraints(min_length=1, max_length=MOST_NAME)]
Label = Annotated[str, StringConstraints(max_length=MOST_LABEL)]
Size = Annotated[int, Field(ge=1, le=MOST_NUMBERS)]
Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelOfTable(_Part):
    """A model by its name in the table of models, and the options that it was built with."""

    name: Name
    options: dict[Name, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_plain(value)
        return value


class ForeignModel(_Part):
    """A class of the user's own, named for people: it is never imported by this name."""

    class_name: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(alias="class")


class InputConfig(_Part):
    """An `InputSpec` without its tensors."""

    kind: Name
    shape: tuple[Size, ...] = Field(max_length=8)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounded(self) -> "InputConfig":
        if math.prod(self.shape) > MOST_NUMBERS:
            raise ValueError(f"an example of shape {self.shape} has more than {MOST_NUMBERS:,} numbers")
        check_plain(self.options)
        return self


class StudentConfig(_Part):
    """`config.json`: which network, what it reads, its classes, and the SHA-256 of every file that answers depend on.

    The model card is not among them: people may edit it.
    """

    format: Literal[2]
    library: Literal["crossdistill"]
    model: ModelOfTable | ForeignModel
    reads: tuple[Name, ...] = Field(min_length=1, max_length=64)
    taps: tuple[Annotated[str, StringConstraints(max_length=1000)], ...] = Field(max_length=10_000)
    classes: tuple[Label, ...] = Field(max_length=MOST_CLASSES)
    inputs: dict[Name, InputConfig] = Field(max_length=64)
    files: dict[Literal["model.safetensors", "preparation.safetensors"], Hash]

    @model_validator(mode="after")
    def _together(self) -> "StudentConfig":
        if set(self.reads) != set(self.inputs) or len(set(self.reads)) != len(self.reads):
            raise ValueError(f"reads {list(self.reads)}, but inputs describe {sorted(self.inputs)}")
        if WEIGHTS not in self.files:
            raise ValueError(f"files name no {WEIGHTS}")
        return self


def sealed(config: Mapping[str, Any]) -> str:
    """The text of a `config.json`, with the hash of its own content as the field `checksum`."""
    content = {name: value for name, value in config.items() if name != "checksum"}
    return json.dumps({**content, "checksum": key_hash(content)}, indent=2, sort_keys=True) + "\n"


def read_config(path: Path) -> StudentConfig:
    """The config of a student's folder, once it and every file that it names are what was written.

    Raises:
        RunError: the folder is not a student's, or its config is damaged, was edited, or is of another format.
        DataError: a file is missing, is none of this student's, or is not what was written; names it.
    """
    text = _read(path)
    try:
        plain = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(plain, dict):
            raise ValueError(f"wanted an object, found {type(plain).__name__}")
        _check_seal(path, plain)
        del plain["checksum"]
        _check_lengths(plain)
        # As JSON once more: only there is a list what a tuple is written as.
        config = StudentConfig.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))[:100]}: {fault['msg'][:200]}"
            for fault in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise RunError(f"{path / CONFIG} is damaged: {'; '.join(faults)}") from error
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:300]
        raise RunError(f"{path / CONFIG} is damaged: {type(error).__name__}: {said}") from error
    _check_files(path, config)
    return config


def _read(path: Path) -> bytes:
    fault = file_fault(path / CONFIG, links=False)
    if fault is not None:
        raise RunError(f"{path} is no student's folder: {path / CONFIG}: {fault}")
    try:
        with (path / CONFIG).open("rb") as file:
            text = file.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path / CONFIG} cannot be read: {error.strerror or error}") from error
    if len(text) > CONFIG_BYTES:
        raise RunError(f"{path / CONFIG} is damaged: it has more than {CONFIG_BYTES:,} bytes")
    return text


def _check_lengths(values: Mapping[str, Any]) -> None:
    """Long lists are looked at here, up to the first fault: pydantic would collect a million of them."""
    for field, most in (("inputs", 64), ("files", 2), ("reads", 64), ("taps", 10_000), ("classes", MOST_CLASSES)):
        found = values.get(field)
        if isinstance(found, list | dict) and len(found) > most:
            raise ValueError(f"{field} has {len(found):,} entries; at most {most:,}")
        for one in found if isinstance(found, list) else ():
            if not isinstance(one, str):
                raise ValueError(f"{field} holds a {type(one).__name__}; wanted texts")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}; numbers are finite")


def _check_seal(path: Path, plain: Mapping[str, Any]) -> None:
    found = plain.get("format")
    if type(found) is not int or found != FORMAT:
        shown = repr(found)[:40] if "format" in plain else "none"
        raise RunError(
            f"{path / CONFIG} is of format {shown}, and this version of crossdistill reads format {FORMAT}; a run's "
            "student is written again, from its stages, by: crossdistill run RUN --resume"
        )
    content = {name: value for name, value in plain.items() if name != "checksum"}
    if plain.get("checksum") != key_hash(content):
        raise RunError(
            f"{path / CONFIG} is damaged, or was edited: its content is not what its checksum says. A run's student is "
            "written again, from its stages, by: crossdistill run RUN --resume"
        )


def _check_files(path: Path, config: StudentConfig) -> None:
    hashes = {str(name): value for name, value in config.files.items()}
    for name in (WEIGHTS, PREPARATION):
        file, wanted = path / name, hashes.get(name)
        fault = file_fault(file, links=False)
        if wanted is None:
            if fault is None:
                raise DataError(f"{file}: {CONFIG} does not name this file, so it is none of this student's; remove it")
            continue
        if fault is not None:
            raise DataError(f"{file}: {fault}")
        try:
            found = file_hash(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        if found != wanted:
            raise DataError(
                f"{file}: damaged, or another student's: its SHA-256 is {found[:12]}..., and {CONFIG} says "
                f"{wanted[:12]}..."
            )
