"""The files of a student's folder, and their verification before a network is built from them.

A student that an Auto class of transformers can open is in a plain folder of transformers: its `config.json`, and the
weights of the model by its names. What belongs to the student alone is in files beside them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from crossdistill.backends.pretrained import PlainModel
from crossdistill.batch import Task
from crossdistill.data.input_options import MOST_CLASSES, MOST_LABEL, MOST_NAME, MOST_NUMBERS, check_plain
from crossdistill.errors import DataError, RunError
from crossdistill.runtime.files import NO_FILE, file_fault
from crossdistill.runtime.hashing import file_hash, key_hash
from crossdistill.runtime.tensor_file import Shapes, check_shapes, read_shapes, read_weights, write_tensors

WEIGHTS, CONFIG, PREPARATION, CARD = "model.safetensors", "config.json", "preparation.safetensors", "README.md"
RECORD, HEAD = "crossdistill.json", "head.safetensors"
"""In a plain folder of transformers: the student's config, and the weights outside of the model."""
PROCESSOR = "preprocessor_config.json"
"""What transformers' feature extractors read; this library reads its own config, so that it may be edited."""
OF_MODEL = "body.model."
"""Beginning of the names of weights of a model of transformers in its student."""
TENSORS = (WEIGHTS, HEAD, PREPARATION)
STUDENT_FOLDER = "student"
"""Name of the student's folder in a run folder."""
FORMAT, PLAIN_FORMAT = 2, 3
"""Versions of the format, of other folders and of plain ones of transformers; they change when old folders become
unreadable. Version 1 had no hashes."""

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
    """The network, its inputs and classes, and the SHA-256 of every file that predictions depend on.

    It is `config.json`, or `crossdistill.json` in a plain folder of transformers. The model card is not among the
    files, so it can be edited.
    """

    format: Literal[2, 3]
    library: Literal["crossdistill"]
    model: ModelOfTable | ForeignModel
    reads: tuple[Name, ...] = Field(min_length=1, max_length=64)
    taps: tuple[Annotated[str, StringConstraints(max_length=1000)], ...] = Field(max_length=10_000)
    classes: tuple[Label, ...] = Field(max_length=MOST_CLASSES)
    task: Task = "classes"
    scale: ScaleConfig | None = None
    inputs: dict[Name, InputConfig] = Field(max_length=64)
    files: dict[Literal["model.safetensors", "preparation.safetensors", "head.safetensors", "config.json"], Hash]

    @model_validator(mode="after")
    def _together(self) -> "StudentConfig":
        if set(self.reads) != set(self.inputs) or len(set(self.reads)) != len(self.reads):
            raise ValueError(f"reads {list(self.reads)}, but inputs describe {sorted(self.inputs)}")
        if WEIGHTS not in self.files:
            raise ValueError(f"files name no {WEIGHTS}")
        if self.is_plain is not (CONFIG in self.files) or (HEAD in self.files and not self.is_plain):
            raise ValueError(f"files are not those of format {self.format}: {', '.join(map(str, sorted(self.files)))}")
        if self.scale is not None and {len(self.scale.mean), len(self.scale.deviation)} != {len(self.classes)}:
            raise ValueError(f"scale has {len(self.scale.mean)} numbers for {len(self.classes)} columns")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the folder is a plain one of transformers."""
        return self.format == PLAIN_FORMAT


def config_file(folder: Path) -> Path:
    """The file with a student's config."""
    return folder / (RECORD if file_fault(folder / RECORD) != NO_FILE else CONFIG)


def write_files(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    preparation: Mapping[str, Tensor],
    plain: PlainModel | None,
) -> None:
    """Write all files of a student but its card; `plain` is what transformers needs in a plain folder."""
    for name, tensors in _parted(weights, plain is not None).items():
        if tensors:
            write_tensors(folder / name, tensors, None if plain is None else {"format": "pt"})
    if preparation:
        write_tensors(folder / PREPARATION, preparation)
    if plain is not None:
        (folder / CONFIG).write_text(plain.config, encoding="utf-8")
        if plain.processor is not None:
            (folder / PROCESSOR).write_text(plain.processor, encoding="utf-8")
    files = {name: file_hash(folder / name) for name in (*TENSORS, CONFIG) if (folder / name).is_file()}
    version = FORMAT if plain is None else PLAIN_FORMAT
    text = sealed({"format": version, "library": "crossdistill", **config, "files": files})
    (folder / (CONFIG if plain is None else RECORD)).write_text(text, encoding="utf-8")


def _parted(weights: Mapping[str, Tensor], plain: bool) -> dict[str, dict[str, Tensor]]:
    """The weights of a student by the file that holds them, with their names there."""
    if not plain:
        return {WEIGHTS: dict(weights)}
    model = {name.removeprefix(OF_MODEL): value for name, value in weights.items() if name.startswith(OF_MODEL)}
    return {WEIGHTS: model, HEAD: {name: value for name, value in weights.items() if not name.startswith(OF_MODEL)}}


def check_student_weights(module: nn.Module, folder: Path, config: StudentConfig, who: str) -> None:
    """Verify that the weights in a student's folder fit a module; see `tensor_file.check_weights`."""
    shapes: Shapes = read_shapes(folder / WEIGHTS)
    if config.is_plain:
        shapes = {f"{OF_MODEL}{name}": shape for name, shape in shapes.items()}
        shapes = {**shapes, **(read_shapes(folder / HEAD) if HEAD in config.files else {})}
    check_shapes(module, shapes, folder / WEIGHTS, who)


def load_student_weights(module: nn.Module, folder: Path, config: StudentConfig, who: str) -> None:
    """Load the weights in a student's folder into a module, strictly; see `tensor_file.load_weights`."""
    check_student_weights(module, folder, config, who)
    weights = read_weights(folder / WEIGHTS)
    if config.is_plain:
        weights = {f"{OF_MODEL}{name}": value for name, value in weights.items()}
        weights |= read_weights(folder / HEAD) if HEAD in config.files else {}
    module.load_state_dict(weights)


def sealed(config: Mapping[str, Any]) -> str:
    """The text of a student's config, with the hash of its content as the field `checksum`."""
    content = {name: value for name, value in config.items() if name != "checksum"}
    return json.dumps({**content, "checksum": key_hash(content)}, indent=2, sort_keys=True) + "\n"


def read_config(path: Path) -> StudentConfig:
    """The config of a student's folder, after verifying its checksum and the hashes of all files.

    Of a plain folder, the options of the model have the content of `config.json`, which is verified too.

    Raises:
        RunError: not a student's folder, or its config is damaged, edited, or of another format.
        DataError: a file is missing, unknown, or damaged; names it.
    """
    file = config_file(path)
    plain = _object(path, file)
    _check_seal(file, plain)
    try:
        del plain["checksum"]
        _check_lengths(plain)
        # Validated as JSON, where strict mode accepts a list for a tuple.
        config = StudentConfig.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))[:100]}: {fault['msg'][:200]}"
            for fault in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise RunError(f"{file} is damaged: {'; '.join(faults)}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    _check_files(path, config)
    return _with_architecture(path, config) if config.is_plain else config


def _with_architecture(path: Path, config: StudentConfig) -> StudentConfig:
    """The config of a plain folder with the architecture that is in transformers' `config.json`."""
    model = config.model
    body = model.options.get("body") if isinstance(model, ModelOfTable) else None
    if not isinstance(model, ModelOfTable) or not isinstance(body, dict):
        raise RunError(f"{path / RECORD} is damaged: its model is none of transformers")
    options = {**model.options, "body": {**body, "config": _object(path, path / CONFIG)}}
    return config.model_copy(update={"model": model.model_copy(update={"options": options})})


def _object(path: Path, file: Path) -> dict[str, Any]:
    """The object in a JSON file of a student's folder, of finite numbers and unique keys."""
    try:
        plain = json.loads(_read(path, file), object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(plain, dict):
            raise ValueError(f"wanted an object, found {type(plain).__name__}")
    except (ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    return plain


def _damaged(file: Path, error: Exception) -> RunError:
    return RunError(f"{file} is damaged: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _read(path: Path, file: Path) -> bytes:
    fault = file_fault(file, links=False)
    if fault is not None:
        raise RunError(f"{path} is not the folder of a student: {file}: {fault}")
    try:
        with file.open("rb") as opened:
            text = opened.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(text) > CONFIG_BYTES:
        raise RunError(f"{file} is damaged: it has more than {CONFIG_BYTES:,} bytes")
    return text


def _check_lengths(values: Mapping[str, Any]) -> None:
    """Check long lists up to the first fault, since pydantic would collect a million faults.

    Raises:
        ValueError: a list is too long, or holds something else than texts.
    """
    for field, most in (("inputs", 64), ("files", 4), ("reads", 64), ("taps", 10_000), ("classes", MOST_CLASSES)):
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


def _check_seal(file: Path, plain: Mapping[str, Any]) -> None:
    version, wanted = plain.get("format"), PLAIN_FORMAT if file.name == RECORD else FORMAT
    if file.name == CONFIG and "model_type" in plain and "library" not in plain:
        raise RunError(
            f"{file.parent} is a folder of transformers and holds no student: there is no {RECORD} in it; as a network "
            f"it is called transformers:{file.parent}"
        )
    if type(version) is not int or version != wanted:
        shown = repr(version)[:40] if "format" in plain else "none"
        raise RunError(
            f"{file} is of format {shown}, and this version of crossdistill reads format {wanted}; a run's student is "
            "written again, from its stages, by: crossdistill run RUN --resume"
        )
    content = {name: value for name, value in plain.items() if name != "checksum"}
    if plain.get("checksum") != key_hash(content):
        raise RunError(
            f"{file} is damaged or was edited: its content does not match its checksum. A run's student is "
            "written again, from its stages, by: crossdistill run RUN --resume"
        )


def _check_files(path: Path, config: StudentConfig) -> None:
    hashes = {str(name): value for name, value in config.files.items()}
    for name in (*TENSORS, *([CONFIG] if config.is_plain else [])):
        file, wanted = path / name, hashes.get(name)
        fault = file_fault(file, links=False)
        if wanted is None:
            if fault is None:
                raise DataError(
                    f"{file}: {config_file(path).name} does not list this file, so it does not belong to this student; "
                    "remove it"
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
                f"{file}: damaged, or a file of another student: wanted the SHA-256 {wanted[:12]}... of "
                f"{config_file(path).name}, found {digest[:12]}..."
            )
