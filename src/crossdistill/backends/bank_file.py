"""Files of teachers' outputs that are handed on: one safetensors or parquet file, written and verified.

The tensors have one row for each sample and view: `ids` and, with augmentation, `view`; `logits.*`, the parts of
`compressed`; `embedding`. Those of several teachers begin with the teacher's number, as in `1.ids`. The header
describes each teacher: name and licence, class names in the order of the logits, the data with its fingerprint, the
augmentation of the views, and the loss of the compression. Such a file comes from elsewhere, so everything in it is
verified, and nothing of it is executed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, field_validator
from torch import Tensor

from crossdistill.backends.compressed import LogitType, index_type
from crossdistill.data.input_options import MOST_CLASSES, MOST_LABEL, MOST_NAME, MOST_NUMBERS, check_plain
from crossdistill.errors import BankDamaged, MissingExtraError, SettingError
from crossdistill.runtime.files import atomic_file, file_fault
from crossdistill.runtime.hashing import key_hash, tensor_hash
from crossdistill.runtime.tensor_file import read_metadata, read_weights, write_tensors

DESCRIPTION = "crossdistill.bank"
"""Key of the description in the header of either format."""
SUFFIXES = (".safetensors", ".parquet")
MOST_TEXT = 2**26
"""Bytes of a description."""
_PARQUET_ROWS = 2**16

Name = Annotated[str, StringConstraints(min_length=1, max_length=MOST_NAME)]
Label = Annotated[str, StringConstraints(max_length=MOST_LABEL)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LicenceInfo(_Part):
    """A `Licence`."""

    name: Label
    licence: Label
    source: Label
    commercial: bool | None


class TeacherInfo(_Part):
    """The teacher: its name in the run, the name of its network, and the licence of that."""

    name: Name
    model: Label | None = None
    licence: LicenceInfo | None = None


class DataInfo(_Part):
    """The data whose rows these are."""

    name: Label
    fingerprint: Label
    splits: dict[Name, Annotated[int, Field(ge=0)]] = Field(max_length=16)
    """Rows of each split."""
    licences: tuple[LicenceInfo, ...] = Field((), max_length=100)


class ViewsInfo(_Part):
    """The augmentation that made the views, by its key; its settings are for people."""

    key: Label
    views: Annotated[int, Field(ge=1, le=2**15 - 1)]
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_plain(value)
        return value


class LogitsInfo(_Part):
    """The form of the logits: their type, and how many of each row are kept (None: all)."""

    dtype: LogitType
    top: Annotated[int, Field(ge=1)] | None = None


class LossInfo(_Part):
    """KL of the rebuilt distribution to the full one at one temperature, nats."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    kl_mean: Share
    kl_max: Share


class BankInfo(_Part):
    """Everything that a file says of the rows of one teacher."""

    format: Literal[1] = 1
    library: Literal["crossdistill"] = "crossdistill"
    teacher: TeacherInfo
    data: DataInfo
    classes: tuple[Label, ...] = Field(min_length=1, max_length=MOST_CLASSES)
    rows: Annotated[int, Field(ge=1, le=MOST_NUMBERS)]
    augmentation: ViewsInfo | None = None
    logits: LogitsInfo
    embedding: Annotated[int, Field(ge=1, le=MOST_NUMBERS)] | None = None
    """Dimensions of the embedding, if the file has it."""
    loss: tuple[LossInfo, ...] = Field((), max_length=16)
    agreement: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of rows whose largest rebuilt logit is that of the full row."""
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    """A hash of its tensors."""

    @property
    def views(self) -> int:
        """Augmented views of each training row; 0 without augmentation."""
        return 0 if self.augmentation is None else self.augmentation.views


@dataclass(frozen=True, slots=True)
class BankFile:
    """The outputs of one teacher in a file: its description, and its tensors by name."""

    info: BankInfo
    tensors: Mapping[str, Tensor]

    @property
    def logits(self) -> dict[str, Tensor]:
        """The parts of the compressed logits."""
        return {name.partition(".")[2]: value for name, value in self.tensors.items() if name.startswith("logits.")}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors with their names, types and shapes."""
    return key_hash([[n, str(t.dtype), list(t.shape), tensor_hash(t)] for n, t in sorted(tensors.items())])


def write_bank_file(path: Path, contents: Sequence[BankFile]) -> None:
    """Write the outputs of some teachers to a file, atomically, in the format of its suffix.

    Raises:
        SettingError: several teachers for parquet, which has one table.
        MissingExtraError: pyarrow is not installed, for parquet.
        StorageError: the disk is full or the folder is not writable.
    """
    text = f"[{','.join(content.info.model_dump_json() for content in contents)}]"
    parquet = path.suffix.lower() == ".parquet"
    if parquet and len(contents) > 1:
        names = ", ".join(content.info.teacher.name for content in contents)
        raise SettingError(f"{path}: parquet holds one teacher, found {names}; name one, or write .safetensors")
    tensors = {
        f"{_prefix(number, len(contents))}{name}": value.contiguous()
        for number, content in enumerate(contents)
        for name, value in content.tensors.items()
    }
    with atomic_file(path) as temporary:
        if parquet:
            _write_parquet(temporary, tensors, text)
        else:
            write_tensors(temporary, tensors, {DESCRIPTION: text})


def read_bank_file(path: Path) -> tuple[BankFile, ...]:
    """A file's content by teacher, verified: descriptions, types and shapes, ids and views, values, and their hashes.

    Raises:
        BankDamaged: it is no such file, is damaged or was edited; says what is wrong.
        MissingExtraError: pyarrow is not installed, for parquet.
    """
    fault = file_fault(path)
    if fault is not None:
        raise BankDamaged(f"{path}: {fault}")
    if path.suffix.lower() == ".parquet":
        text, tensors = _read_parquet(path)
    else:
        text, tensors = read_metadata(path).get(DESCRIPTION), read_weights(path)
    if text is None:
        raise BankDamaged(f"{path}: not written by `crossdistill bank export`: its header lacks {DESCRIPTION!r}")
    infos = _described(path, text)
    contents, rest = [], dict(tensors)
    for number, info in enumerate(infos):
        start = _prefix(number, len(infos))
        names = [name for name in tensors if name.startswith(start)] if start else list(tensors)
        own = {name[len(start) :]: rest.pop(name) for name in names}
        faults = _layout_faults(info, own) or _value_faults(info, own)
        if not faults and digest(own) != info.digest:
            faults = ["its values do not match their hash"]
        if faults:
            raise BankDamaged(f"{path}: damaged or edited: {'; '.join(faults[:3])}; get it again, or export it again")
        contents.append(BankFile(info, own))
    if rest:
        raise BankDamaged(f"{path}: damaged or edited: {next(iter(rest))[:80]!r} belongs to no teacher")
    return tuple(contents)


def _prefix(number: int, teachers: int) -> str:
    """The beginning of the names of a teacher's tensors."""
    return f"{number}." if teachers > 1 else ""


def _described(path: Path, text: str) -> tuple[BankInfo, ...]:
    try:
        if len(text) > MOST_TEXT:
            raise ValueError(f"it has more than {MOST_TEXT:,} bytes")
        infos = _INFOS.validate_json(text, strict=True)
        names = [info.teacher.name for info in infos]
        if len(set(names)) < len(names):
            raise ValueError("two teachers have one name")
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))[:100]}: {fault['msg'][:200]}"
            for fault in error.errors(include_url=False, include_input=False)[:3]
        ]
        raise BankDamaged(f"{path}: its description is damaged: {'; '.join(faults)}") from error
    except (ValueError, RecursionError) as error:
        raise BankDamaged(f"{path}: its description is damaged: {' '.join(str(error).split())[:200]}") from error
    return infos


_INFOS = TypeAdapter(Annotated[tuple[BankInfo, ...], Field(min_length=1, max_length=64)])


def layout(info: BankInfo) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor but `ids`, `view` and `embedding`, whose types have several forms."""
    kept = info.logits.top if info.logits.top is not None and info.logits.top < len(info.classes) else None
    types = {"float32": torch.float32, "float16": torch.float16, "int8": torch.uint8}
    parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "logits.values": (types[info.logits.dtype], (info.rows, kept or len(info.classes)))
    }
    numbers = [*(["rest"] if kept else []), *(["largest", "scale"] if info.logits.dtype == "int8" else [])]
    parts.update({f"logits.{name}": (torch.float32, (info.rows,)) for name in numbers})
    if kept:
        parts["logits.classes"] = (index_type(len(info.classes)), (info.rows, kept))
    return parts


def _layout_faults(info: BankInfo, tensors: Mapping[str, Tensor]) -> list[str]:
    wanted: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]] = {
        name: ((dtype,), shape) for name, (dtype, shape) in layout(info).items()
    }
    wanted["ids"] = ((torch.int32, torch.int64), (info.rows,))
    if info.views:
        wanted["view"] = ((torch.int16,), (info.rows,))
    if info.embedding is not None:
        wanted["embedding"] = ((torch.float32, torch.float16), (info.rows, info.embedding))
    faults = [f"{name[:80]!r} is missing" for name in wanted if name not in tensors]
    faults += [f"{name[:80]!r} is unknown" for name in tensors if name not in wanted]
    return faults + [
        f"{name}: wanted {' or '.join(map(str, types))} {shape}, found {tensors[name].dtype} "
        f"{tuple(tensors[name].shape)}"
        for name, (types, shape) in wanted.items()
        if name in tensors and (tensors[name].dtype not in types or tuple(tensors[name].shape) != shape)
    ]


def _value_faults(info: BankInfo, tensors: Mapping[str, Tensor]) -> list[str]:
    faults = [
        f"{name} has values that are NaN or Inf"
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    ids, view = tensors["ids"].long(), tensors.get("view", torch.zeros(info.rows)).long()
    if int(ids.min()) < 0 or int(ids.max()) >= 2**40 or int(view.min()) < 0 or int(view.max()) > info.views:
        return [*faults, f"wanted ids from 0 and views from 0 to {info.views}, found others"]
    if len((ids * (info.views + 1) + view).unique()) != info.rows:
        faults.append("a row of the same id and view occurs twice")
    kept = tensors.get("logits.classes")
    if kept is not None:
        ordered = kept.long().sort(1).values
        if int(ordered[:, 0].min()) < 0 or int(ordered[:, -1].max()) >= len(info.classes):
            faults.append(f"logits.classes: wanted classes from 0 to {len(info.classes) - 1}, found others")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            faults.append("logits.classes: a row has a class twice")
    if "logits.scale" in tensors and bool((tensors["logits.scale"] < 0).any()):
        faults.append("logits.scale: wanted numbers of at least 0, found less")
    return faults


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(what, "pyarrow", "parquet") from error
    return pyarrow


def _write_parquet(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """One column for each tensor, those with several numbers in a row as lists of a fixed size."""
    pa = _pyarrow("a bank in parquet")
    columns = {}
    for name, value in tensors.items():
        flat = pa.array(value.contiguous().flatten().numpy())
        columns[name] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
    table = pa.table(columns).replace_schema_metadata({DESCRIPTION: text})
    pa.parquet.write_table(table, path, compression="zstd", row_group_size=_PARQUET_ROWS)


def _read_parquet(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    pa = _pyarrow("a bank in parquet")
    try:
        file = pa.parquet.ParquetFile(path)
        text = (file.schema_arrow.metadata or {}).get(DESCRIPTION.encode())
        if text is None:
            return None, {}
        # Before any value is read: a small file can state a table of any size.
        sizes = [max(1, getattr(field.type, "list_size", 1)) for field in file.schema_arrow]
        if file.metadata.num_rows * max(sizes, default=1) > 2**36:
            raise ValueError(f"it states {file.metadata.num_rows:,} rows")
        return text.decode(), {name: _tensor(name, column) for name, column in _columns(file.read())}
    except Exception as error:  # pyarrow raises errors of many kinds
        said = " ".join(str(error).split())[:200]
        raise BankDamaged(f"{path}: damaged, or not a parquet file of a bank: {said}") from error


def _columns(table: Any) -> list[tuple[str, Any]]:
    return list(zip(table.column_names, (column.combine_chunks() for column in table.columns), strict=True))


def _tensor(name: str, column: Any) -> Tensor:
    """A column as a tensor.

    Raises:
        ValueError: it has empty cells.
    """
    size = getattr(column.type, "list_size", None)
    if column.null_count:
        raise ValueError(f"the column {name[:80]!r} has empty cells")
    flat = torch.tensor((column if size is None else column.flatten()).to_numpy(zero_copy_only=False))
    return flat if size is None else flat.reshape(len(column), size)
