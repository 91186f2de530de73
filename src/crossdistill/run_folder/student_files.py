"""The files of a student's folder, and their verification before a network is built from them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from crossdistill.batch import Task
from crossdistill.data.input_options import MOST_CLASSES, MOST_LABEL, MOST_NAME, MOST_NUMBERS, check_plain
from crossdistill.errors import DataError, RunError
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.hashing import file_hash, key_hash

WEIGHTS, CONFIG, PREPARATION, CARD = "model.safetensors", "config.json", "preparation.safetensors", "README.md"
STUDENT_FOLDER = "student"
"""Name of the student's folder in a run folder."""
FORMAT = 2
"""Version of the format; changes when old folders become unreadable. Version 1 had no hashes."""

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
    """A user's class; the name is for information and is never imported."""

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


class ScaleConfig(_Part):
    """The `TargetScale` of a regression."""

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(max_length=MOST_CLASSES)
    deviation: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(max_length=MOST_CLASSES)


class StudentConfig(_Part):
    """`config.json`: the network, its inputs and classes, and the SHA-256 of every file that predictions depend on.

    The model card is not among them, so it can be edited.
    """

    format: Literal[2]
    library: Literal["crossdistill"]
    model: ModelOfTable | ForeignModel
    reads: tuple[Name, ...] = Field(min_length=1, max_length=64)
    taps: tuple[Annotated[str, StringConstraints(max_length=1000)], ...] = Field(max_length=10_000)
    classes: tuple[Label, ...] = Field(max_length=MOST_CLASSES)
    task: Task = "classes"
    scale: ScaleConfig | None = None
    inputs: dict[Name, InputConfig] = Field(max_length=64)
    files: dict[Literal["model.safetensors", "preparation.safetensors"], Hash]

    @model_validator(mode="after")
    def _together(self) -> "StudentConfig":
        if set(self.reads) != set(self.inputs) or len(set(self.reads)) != len(self.reads):
            raise ValueError(f"reads {list(self.reads)}, but inputs describe {sorted(self.inputs)}")
        if WEIGHTS not in self.files:
            raise ValueError(f"files name no {WEIGHTS}")
        if self.scale is not None and {len(self.scale.mean), len(self.scale.deviation)} != {len(self.classes)}:
            raise ValueError(f"scale has {len(self.scale.mean)} numbers for {len(self.classes)} columns")
        return self


def sealed(config: Mapping[str, Any]) -> str:
    """The text of a `config.json`, with the hash of its content as the field `checksum`."""
    content = {name: value for name, value in config.items() if name != "checksum"}
    return json.dumps({**content, "checksum": key_hash(content)}, indent=2, sort_keys=True) + "\n"


def read_config(path: Path) -> StudentConfig:
    """The config of a student's folder, after verifying its checksum and the hashes of all files.

    Raises:
        RunError: not a student's folder, or its config is damaged, edited, or of another format.
        DataError: a file is missing, unknown, or damaged; names it.
    """
    text = _read(path)
    try:
        plain = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(plain, dict):
            raise ValueError(f"wanted an object, found {type(plain).__name__}")
        _check_seal(path, plain)
        del plain["checksum"]
        _check_lengths(plain)
        # Validated as JSON, where strict mode accepts a list for a tuple.
        config = StudentConfig.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))[:100]}: {fault['msg'][:200]}"
            for fault in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise RunError(f"{path / CONFIG} is damaged: {'; '.join(faults)}") from error
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:300]
        raise RunError(f"{path / CONFIG} is damaged: {type(error).__name__}: {cause}") from error
    _check_files(path, config)
    return config


def _read(path: Path) -> bytes:
    fault = file_fault(path / CONFIG, links=False)
    if fault is not None:
        raise RunError(f"{path} is not the folder of a student: {path / CONFIG}: {fault}")
    try:
        with (path / CONFIG).open("rb") as file:
            text = file.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path / CONFIG} cannot be read: {error.strerror or error}") from error
    if len(text) > CONFIG_BYTES:
        raise RunError(f"{path / CONFIG} is damaged: it has more than {CONFIG_BYTES:,} bytes")
    return text


def _check_lengths(values: Mapping[str, Any]) -> None:
    """Check long lists up to the first fault, since pydantic would collect a million faults.

    Raises:
        ValueError: a list is too long, or holds something else than texts.
    """
    for field, most in (("inputs", 64), ("files", 2), ("reads", 64), ("taps", 10_000), ("classes", MOST_CLASSES)):
        entries = values.get(field)
        if isinstance(entries, list | dict) and len(entries) > most:
            raise ValueError(f"{field} has {len(entries):,} entries; at most {most:,}")
        for item in entries if isinstance(entries, list) else ():
            if not isinstance(item, str):
                raise ValueError(f"{field} holds a {type(item).__name__}; wanted texts")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key occurs twice")
    return unique


def _no_constant(name: str) -> float:
    raise ValueError(f"wanted finite numbers, found {name}")


def _check_seal(path: Path, plain: Mapping[str, Any]) -> None:
    version = plain.get("format")
    if type(version) is not int or version != FORMAT:
        shown = repr(version)[:40] if "format" in plain else "none"
        raise RunError(
            f"{path / CONFIG} is of format {shown}, and this version of crossdistill reads format {FORMAT}; a run's "
            "student is written again, from its stages, by: crossdistill run RUN --resume"
        )
    content = {name: value for name, value in plain.items() if name != "checksum"}
    if plain.get("checksum") != key_hash(content):
        raise RunError(
            f"{path / CONFIG} is damaged or was edited: its content does not match its checksum. A run's student is "
            "written again, from its stages, by: crossdistill run RUN --resume"
        )


def _check_files(path: Path, config: StudentConfig) -> None:
    hashes = {str(name): value for name, value in config.files.items()}
    for name in (WEIGHTS, PREPARATION):
        file, wanted = path / name, hashes.get(name)
        fault = file_fault(file, links=False)
        if wanted is None:
            if fault is None:
                raise DataError(
                    f"{file}: {CONFIG} does not list this file, so it does not belong to this student; remove it"
                )
            continue
        if fault is not None:
            raise DataError(f"{file}: {fault}")
        try:
            digest = file_hash(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        if digest != wanted:
            raise DataError(
                f"{file}: damaged, or a file of another student: wanted the SHA-256 {wanted[:12]}... of {CONFIG}, "
                f"found {digest[:12]}..."
            )
