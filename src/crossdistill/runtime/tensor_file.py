"""Reading of untrusted safetensors files: the header is verified before memory is allocated for the tensors."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from crossdistill.errors import DataError, ShapeError
from crossdistill.runtime.files import file_fault

HEADER_BYTES = 100_000_000
"""Limit of the header's size, as in safetensors."""
MOST_NAME = 1000
TYPES = (
    *("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64"),
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"),
)
"""Names of number types in safetensors files."""

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def read_shapes(path: Path) -> Shapes:
    """Type (by its safetensors name) and shape of every tensor, from the header alone.

    Raises:
        DataError: the file is missing or not a file, or its header is damaged or describes more than the file holds.
    """
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(HEADER_BYTES, size - 8):
                raise ValueError(f"its header states a length of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        return _shapes(header, size - 8 - length)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, struct.error) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged, or not a safetensors file: {said}") from error


def _shapes(header: Any, held: int) -> Shapes:
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    shapes = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        plain: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
        kind, shape, offsets = plain.get("dtype"), _whole(plain.get("shape")), _whole(plain.get("data_offsets"))
        size = offsets[1] - offsets[0] if len(offsets) == 2 and offsets[1] <= held else -1
        if kind not in TYPES or len(name) > MOST_NAME or size < 0 or math.prod(shape) > 8 * size:
            raise ValueError(f"its header's entry {name[:80]!r} describes more than the file holds")
        shapes[name] = (kind, shape)
    return shapes


def _whole(value: Any) -> tuple[int, ...]:
    short = isinstance(value, list) and len(value) <= 64
    right = short and all(type(number) is int and 0 <= number < 2**63 for number in value)
    # A value that is not a list of sizes becomes a shape larger than any file.
    return tuple(value) if right else (2**63,)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header, by name.

    Raises:
        DataError: see `read_shapes`, or one of them is no text.
    """
    read_shapes(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        texts = json.loads(file.read(length)).get("__metadata__") or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{path}: damaged: its header's __metadata__ holds something else than texts")
    return texts


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the umask's permissions; safetensors alone would restrict it to its owner.

    `metadata` are texts for the header.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        DataError: the file is missing, damaged, or not a safetensors file; names it.
    """
    read_shapes(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, AttributeError) as error:
        # The reader fails in several ways for types that it does not support.
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged, or not a safetensors file: {said}") from error


def check_weights(module: nn.Module, path: Path, who: str) -> None:
    """Verify that a safetensors file fits a module, which may be on the device "meta"; reads only the header.

    Raises:
        DataError: the file cannot be read.
        ShapeError: it does not fit; lists weights that are missing, unknown, or of another shape or type.
    """
    check_shapes(module, read_shapes(path), path, who)


def check_shapes(module: nn.Module, stored: Shapes, path: Path, who: str) -> None:
    """Verify that stored tensors, of which `path` is named in messages, fit a module, as `check_weights` does.

    Raises:
        ShapeError: they do not fit; lists weights that are missing, unknown, or of another shape or type.
    """
    wanted = module.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in stored],
        "unknown": [name for name in stored if name not in wanted],
        "of another shape": [
            f"{name} {stored[name][1]} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            # A lazy layer adopts the sizes in the file.
            if name in stored and not is_lazy(value) and stored[name][1] != tuple(value.shape)
        ],
        "of another type": [
            f"{name} {stored[name][0]} instead of {value.dtype}"
            for name, value in wanted.items()
            # Any floating-point precision is converted to the module's; integers are refused.
            if name in stored and ("F" in stored[name][0]) is not value.dtype.is_floating_point
        ],
    }
    said = [f"{what}: {', '.join(n[:3])}{f' and {len(n) - 3} more' * (len(n) > 3)}" for what, n in faults.items() if n]
    if said:
        raise ShapeError(f"the weights in {path} do not fit {who}; {'; '.join(said)}")


def load_weights(module: nn.Module, path: Path, who: str) -> None:
    """Load a safetensors file into a module, strictly.

    Raises:
        DataError: the file cannot be read.
        ShapeError: it does not fit; lists weights that are missing, unknown, or of another shape or type.
    """
    check_weights(module, path, who)
    module.load_state_dict(read_weights(path))


def not_finite(tensors: Mapping[str, Tensor], module: nn.Module | None = None) -> list[str]:
    """Descriptions of tensors with NaN or Inf, by name. Buffers of `module` may contain -Inf, as attention masks do."""
    buffers = () if module is None else {name for name, _ in module.named_buffers()}
    faults = []
    for name, value in tensors.items():
        # A lazy layer and one on "meta" have no numbers yet.
        if is_lazy(value) or value.is_meta:
            continue
        if value.is_floating_point() or value.is_complex():
            wrong = ~value.isfinite()
            if name in buffers and not value.is_complex():
                wrong &= ~value.isneginf()
            if wrong.any():
                faults.append(f"{name!r} holds NaN or Inf in {int(wrong.sum()):,} of {value.numel():,} numbers")
    return faults


def first_three(faults: Sequence[str]) -> str:
    """The first faults as a text, and the number of the others."""
    return ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")


def check_finite(module: nn.Module, who: str) -> None:
    """Check that weights which were read hold numbers: otherwise training would find NaN and blame the samples.

    Raises:
        DataError: a weight is NaN or infinite; `who` begins the message.
    """
    faults = not_finite(module.state_dict(), module)
    if faults:
        raise DataError(f"{who}: its weights are damaged: {first_three(faults)}; take other weights")
