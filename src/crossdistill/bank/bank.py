"""One output of a frozen network for every sample, computed once, stored as arrays and read by sample id.

A bank is one folder for one output of one network:

    bank.json    the key, and a description (source, number of rows, time)
    ids.npy      (R,) int64, the sample of each row
    view.npy     (R,) int64, the view of the sample: 0 without augmentation, others are seeded
    values.npy   (R, ...) the output; bfloat16 is stored as the uint16 of its bits
    seen.npy     (R,) uint8, 1 for rows whose modalities are present, so that the network computed them
    blocks.npy   one uint64 for each block of 256 rows: 0 is absent, else 2³² + the CRC-32 of its values and `seen`

The folder appears as a whole, with files of their full size and no blocks. A block is complete or absent, even if
processes that fill it are killed; since blocks are fixed, a bank that is filled again is the same bit for bit.
"""

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from crossdistill.bank.rows import BankRows
from crossdistill.errors import BankDamaged, BankMissing, BankStale, StorageError
from crossdistill.outputs import Signal
from crossdistill.runtime.files import atomic_folder, reserve, write_json
from crossdistill.runtime.hashing import key_hash

SCHEMA = 3
"""Version of the file layout; changes whenever the same key would describe other files."""
BLOCK_ROWS = 256
DESCRIPTION = "bank.json"

StoredType = Literal["float32", "float16", "bfloat16"]
STORED: Mapping[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "<f4"),
    "float16": (torch.float16, "<f2"),
    "bfloat16": (torch.bfloat16, "<u2"),
}
"""Types of stored values: the torch type and the NumPy type in the file."""


class BankSettings(BaseModel):
    """Space limits of the stored outputs of frozen networks, and their precision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: int = Field(4 * 2**30, ge=0)
    """Bytes on disk for the banks of one stage. An output that does not fit is computed live."""
    memory: int = Field(2**30, ge=0)
    """Bytes of the banks that are held in memory (of the accelerator, if there is one); the rest is read from disk."""
    dtype: StoredType = "float32"
    """Type of stored values; float16 and bfloat16 halve the bytes and round the values."""


@dataclass(frozen=True, slots=True)
class BankKey:
    """Everything that the numbers of a bank depend on; its hash is part of the folder's name.

    `weights` and `data` are hashes (`weights` covers the structure too), `rows` is `BankRows.key`. `views` counts the
    seeded views of each training row (0: no augmentation), `transform` is the key of their augmentation. `gives` is
    the type of the network's output, `dtype` that of the stored values; `computed` names the library and the device.
    """

    weights: str
    data: str
    rows: str
    want: str
    shape: tuple[int, ...]
    gives: str = "float32"
    dtype: str = "float32"
    transform: str = "none"
    views: int = 0
    computed: str = ""
    schema: int = SCHEMA

    @property
    def folder(self) -> str:
        """Name of the bank's folder within the folder of all banks."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.want)
        return f"{name}-{key_hash(self.as_data())[:20]}"

    def as_data(self) -> dict[str, Any]:
        """The key as plain JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """The fields in which a stored key differs from this one, one line each."""
        wanted = self.as_data()
        names = [*wanted, *(name for name in stored if name not in wanted)]
        return [
            f"{name} (wanted {_short(wanted.get(name))}, found {_short(stored.get(name))})"
            for name in names
            if wanted.get(name) != stored.get(name)
        ]

    @classmethod
    def from_data(cls, value: Any, where: Path) -> "BankKey":
        """A key from the description of a bank.

        Raises:
            BankDamaged: the value is not a key.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names or value["dtype"] not in STORED:
            raise BankDamaged(f"bank {where}: {DESCRIPTION} holds no key of schema {SCHEMA}; {remedy(where)}")
        return cls(**{**value, "shape": tuple(value["shape"])})

    def bytes(self, num_rows: int) -> int:
        """Size of the values of `num_rows` rows, in bytes."""
        return num_rows * int(np.prod(self.shape)) * STORED[self.dtype][0].itemsize


class Bank:
    """One output of one frozen network for some rows, on disk; `create` makes an empty bank, `open` verifies one."""

    def __init__(self, path: Path, key: BankKey, rows: BankRows) -> None:
        self.path = path
        self.key = key
        self.rows = rows
        self.want = Signal(*key.want.split(":", 1))
        self._held: Tensor | None = None
        self._seen: Tensor | None = None
        self._all_seen = True

    @classmethod
    def create(cls, folder: Path, key: BankKey, rows: BankRows, about: Mapping[str, Any]) -> "Bank":
        """The verified bank of this key in the folder of all banks; an empty one is made if there is none.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
            BankError: see `open`.
        """
        path = folder / key.folder
        if not (path / DESCRIPTION).is_file():
            size = key.bytes(len(rows))
            with atomic_folder(path) as temporary:
                for name, (dtype, shape) in _layout(key, len(rows)).items():
                    _reserve(temporary / f"{name}.npy", dtype, shape, path, size)
                np.lib.format.open_memmap(temporary / "ids.npy", mode="r+")[:] = rows.ids.numpy()
                if rows.view is not None:
                    np.lib.format.open_memmap(temporary / "view.npy", mode="r+")[:] = rows.view.numpy()
                write_json(temporary / DESCRIPTION, {"key": key.as_data(), "rows": len(rows), "about": dict(about)})
        return cls.open(path, key, rows)

    @classmethod
    def open(cls, path: Path, key: BankKey, rows: BankRows) -> "Bank":
        """An existing bank, filled or not, after verification of its key, its arrays' types and its rows.

        Raises:
            BankMissing: there is no bank.
            BankStale: the bank has another key; names the fields that differ.
            BankDamaged: a file is missing, truncated, of another type, or holds other samples or views.
        """
        if not (path / DESCRIPTION).is_file():
            raise BankMissing(f"there is no bank {path}; `crossdistill bank fill` or a run with source=banked fills it")
        differences = key.differences(described(path)["key"])
        if differences:
            raise BankStale(f"bank {path} has another key: {'; '.join(differences)}; {remedy(path)}")
        for name, (dtype, shape) in _layout(key, len(rows)).items():
            _verify_array(path / f"{name}.npy", dtype, shape)
        views = torch.zeros_like(rows.ids) if rows.view is None else rows.view
        for what, file, wanted in (("sample", "ids", rows.ids), ("view", "view", views)):
            stored = torch.from_numpy(np.load(path / f"{file}.npy", allow_pickle=False))
            if not torch.equal(stored, wanted):
                row = int((stored != wanted).nonzero()[0])
                raise BankDamaged(
                    f"bank {path}, row {row}: wanted {what} {int(wanted[row])}, found {what} {int(stored[row])}; "
                    f"{remedy(path)}"
                )
        with suppress(OSError):  # a read-only folder is not pruned either
            os.utime(path / DESCRIPTION)
        return cls(path, key, rows)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First row and end (exclusive) of every block."""
        return [(start, min(start + BLOCK_ROWS, len(self.rows))) for start in range(0, len(self.rows), BLOCK_ROWS)]

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not filled."""
        marks: list[int] = np.flatnonzero(self._array("blocks") == 0).tolist()
        return marks

    def verify_values(self) -> None:
        """Read all values and compare them with the checksums of their blocks.

        Raises:
            BankMissing: blocks are not filled.
            BankDamaged: a block differs from its checksum.
        """
        self._require_all()
        self._verify_marks(self._array("values"), self._array("seen"))

    def hold(self, device: torch.device | str = "cpu") -> None:
        """Load the whole bank into the memory of a device, verified.

        Raises:
            BankMissing, BankDamaged: see `verify_values`.
        """
        self._require_all()
        values, seen = np.array(self._array("values")), np.array(self._array("seen"))
        self._verify_marks(values, seen)
        self._take_up(_as_tensor(values, self.key).to(device), seen)

    def read(self, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"] | None = None) -> Tensor:
        """The rows of these samples (B, ...), in the stored type.

        Raises:
            BankMissing: the bank lacks a sample or view, or is not filled.
        """
        return self.take(self.rows.find(ids, view))

    def take(self, at: Int64[Tensor, " R"]) -> Tensor:
        """Rows by their positions, which `rows.find` returns."""
        held = self._values()
        if held.device != at.device:
            return held.index_select(0, at.to(held.device)).to(at.device, non_blocking=True)
        return held.index_select(0, at)

    def seen(self, at: Int64[Tensor, " R"]) -> Tensor | None:
        """Mask of the rows (by position) that the network computed; None if it computed every row of the bank."""
        self._values()
        if self._all_seen:
            return None
        assert self._seen is not None
        if self._seen.device != at.device:
            self._seen = self._seen.to(at.device)
        return self._seen.index_select(0, at)

    def _values(self) -> Tensor:
        if self._held is None:
            self._require_all()
            # Copy on write, because torch warns about tensors over read-only mappings.
            mapped = np.load(self.path / "values.npy", mmap_mode="c", allow_pickle=False)
            self._take_up(_as_tensor(mapped, self.key), np.array(self._array("seen")))
        assert self._held is not None
        return self._held

    def _take_up(self, values: Tensor, seen: np.ndarray) -> None:
        self._held = values
        self._all_seen = bool(seen.all())
        self._seen = torch.from_numpy(seen.astype(bool))

    def _array(self, name: str) -> Any:
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def _require_all(self) -> None:
        missing = self.missing()
        if missing:
            raise BankMissing(
                f"bank {self.path}: {len(missing)} of {len(self.blocks)} blocks are not filled, first {missing[0]}; "
                "resume the run that fills it, or fill it with `crossdistill bank fill`"
            )

    def _verify_marks(self, values: Any, seen: Any) -> None:
        marks = self._array("blocks")
        for number, (start, end) in enumerate(self.blocks):
            if mark(values[start:end].tobytes(), seen[start:end].tobytes()) != int(marks[number]):
                raise BankDamaged(
                    f"bank {self.path}: block {number} (rows {start} to {end - 1}) does not match its checksum; "
                    f"{remedy(self.path)}"
                )


def mark(values: bytes, seen: bytes) -> int:
    """The entry of a filled block in `blocks.npy`."""
    return (1 << 32) + zlib.crc32(seen, zlib.crc32(values))


def described(path: Path) -> dict[str, Any]:
    """The content of `bank.json`.

    Raises:
        BankDamaged: the file cannot be read or does not describe a bank.
    """
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankDamaged(f"bank {path}: {DESCRIPTION} cannot be read ({error}); {remedy(path)}") from error
    known = description if isinstance(description, dict) else {}
    if not isinstance(known.get("key"), dict) or not isinstance(known.get("rows"), int):
        raise BankDamaged(f"bank {path}: {DESCRIPTION} does not describe a bank; {remedy(path)}")
    return known


def remedy(path: Path) -> str:
    """Advice for errors about a bank that cannot be used."""
    return f"remove it with `crossdistill bank clear {path}`; the next run fills it again"


def _layout(key: BankKey, num_rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array."""
    return {
        "ids": ("<i8", (num_rows,)),
        "view": ("<i8", (num_rows,)),
        "values": (STORED[key.dtype][1], (num_rows, *key.shape)),
        "seen": ("|u1", (num_rows,)),
        "blocks": ("<u8", (-(-num_rows // BLOCK_ROWS),)),
    }


def _reserve(file: Path, dtype: str, shape: tuple[int, ...], bank: Path, size: int) -> None:
    """Make an array of zeros and reserve its space on disk, so that a full disk fails here and not while filling.

    Raises:
        StorageError: the disk is full.
    """
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)
    array.flush()
    del array
    with file.open("rb+") as stream:
        try:
            reserve(stream.fileno(), file.stat().st_size)
        except OSError as error:
            raise StorageError(
                f"bank {bank} needs {size_text(size)}: {error.strerror}. Free some space, choose another folder for "
                "banks, lower bank.budget, or set the stage's source to live"
            ) from error


def _verify_array(file: Path, dtype: str, shape: tuple[int, ...]) -> None:
    bank = file.parent
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            stored_shape, _, stored_dtype = read(stream)
            start = stream.tell()
    except (OSError, ValueError) as error:
        raise BankDamaged(f"bank {bank}: {file.name} cannot be read ({error}); {remedy(bank)}") from error
    if stored_dtype.str != dtype or stored_shape != shape:
        raise BankDamaged(
            f"bank {bank}: {file.name}: wanted {dtype} {shape}, found {stored_dtype.str} {stored_shape}; {remedy(bank)}"
        )
    size, wanted = file.stat().st_size, start + int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size != wanted:
        raise BankDamaged(f"bank {bank}: {file.name}: wanted {wanted:,} bytes, found {size:,}; {remedy(bank)}")


def _as_tensor(values: np.ndarray, key: BankKey) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if key.dtype == "bfloat16" else tensor


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else repr(value)


def size_text(size: int) -> str:
    """A number of bytes as text with a unit."""
    for unit, bytes_ in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} bytes"
