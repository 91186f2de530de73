"""Row sources over a map-style dataset, whose items hold several modalities, such as a `torch.utils.data.Dataset`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from crossdistill.batch import Input, InputSpec
from crossdistill.data.rendering import Rendering, Sound, TextRendering
from crossdistill.data.row_source import said
from crossdistill.data.variable_length import Length, told_lengths
from crossdistill.data.workers import reading
from crossdistill.errors import CrossdistillError, DataError, ShapeError
from crossdistill.runtime.hashing import key_hash

TARGET = "target"
"""The column of the class."""
LABELS = ("label", "labels", "target", "targets", "y")
"""Names under which items and datasets usually have their class."""

Collate = Callable[[list[Any]], Mapping[str, Any]]
Column = int | str


class Items:
    """A map-style dataset that is read by rows; the last ones are kept, since each modality reads the same."""

    def __init__(self, dataset: Any, collate: Collate | None = None) -> None:
        self.dataset, self.collate = dataset, collate
        self._last: tuple[Any, Any] = (None, None)

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: Int64[Tensor, " B"]) -> Any:
        """The items of some rows, or what the collate function makes of them."""
        key = (os.getpid(), tuple(rows.tolist()))
        if self._last[0] != key:
            items = []
            for row in rows.tolist():
                reading(row)
                items.append(self.dataset[row])
            self._last = (key, items if self.collate is None else self.collate(items))
        return self._last[1]

    def forget(self) -> None:
        """Read the next rows again, even the last ones."""
        self._last = (None, None)

    def values(self, rows: Int64[Tensor, " B"], column: Column) -> Any:
        """One column of some rows: a list, or a tensor or a mapping out of the collate function."""
        taken = self.take(rows)
        return _cell(taken, column) if self.collate is not None else [_cell(item, column) for item in taken]


@dataclass
class ItemRows:
    """One column of a map-style dataset as a row source."""

    items: Items
    column: Column
    spec: InputSpec
    dtype: torch.dtype
    deterministic: bool = True
    rendering: Rendering | None = None
    length: Length | None = None
    content: str = ""
    """A hash of the content of the column, whatever its rendering."""
    lengths: Int64[Tensor, " N"] | None = None
    there: Int64[Tensor, " R"] = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64), repr=False)
    """The rows that can be read."""
    digests: UInt8[np.ndarray, "N 16"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *example)."""
        return (len(self), *self.spec.shape)

    @property
    def fingerprint(self) -> str:
        """A hash of content and preparation."""
        made = [self.rendering and self.rendering.key, self.length and self.length.key]
        return key_hash(["items", self.content, len(self), str(self.column), made])

    def rendered(self, rendering: Rendering) -> "ItemRows":
        """The same column in another rendering; a batch that reads both reads each item once.

        Raises:
            DataError: the column cannot be rendered so.
        """
        other = source_of(self.items, self.column, self.there, "a rendering", rendering, None)
        other.deterministic, other.content, other.digests = self.deterministic, self.content, self.digests
        return other

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The column in some rows."""
        return _stacked(self.items.values(rows, self.column), rows, self.rendering, self.length)

    def name_of(self, row: int) -> str:
        """The dataset's own name of a row, if it has any; else its place in it."""
        name_of = getattr(self.items.dataset, "name_of", None)
        return str(name_of(row)) if callable(name_of) else f"{type(self.items.dataset).__name__}[{row}]"

    def __getattr__(self, name: str) -> Any:
        # Only there if the rows were hashed: without it, their values are compared.
        digests = self.__dict__.get("digests")
        if name == "row_key" and digests is not None:
            return lambda row: digests[row].tobytes()
        raise AttributeError(name)


def as_value(value: Any, where: str) -> Tensor:
    """One example's value as a tensor: arrays, numbers, and pictures of Pillow as bytes (channels, height, width).

    Raises:
        DataError: another type.
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float64 else value
    if hasattr(value, "getbands") and hasattr(value, "convert"):
        plain = value if value.mode in ("L", "RGB") else value.convert("RGB")
        pixels = torch.from_numpy(np.array(plain))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    if isinstance(value, Mapping) and "array" in value:  # Hugging Face's sounds
        value = value["array"]
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where} is made of parts of different lengths") from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where} is a {type(value).__name__}; wanted a tensor, an array or a picture, or a rendering of it "
            "(renderings=) or a collate function (collate=)"
        )
    tensor = torch.from_numpy(np.array(array))
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _stacked(values: Any, rows: Tensor, rendering: Rendering | None, length: Length | None) -> Input:
    if isinstance(values, Tensor) or (isinstance(values, Mapping) and not rendering):
        return values
    if rendering is not None:
        return rendering.apply_all([decoded(value, rendering) for value in values])
    tensors = [
        value if isinstance(value, Tensor) and value.dtype == torch.float32 else as_value(value, f"row {row}")
        for value, row in zip(values, rows.tolist(), strict=True)
    ]
    if length is not None:
        return length.batch(tensors, rows)
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ShapeError(unequal(tensors, rows.tolist()))
    # In a worker this stacks into shared memory, which saves a copy.
    stacked: Tensor = default_collate([tensor.reshape(1) if tensor.ndim == 0 else tensor for tensor in tensors])
    return stacked


def decoded(value: Any, rendering: Rendering) -> Any:
    """A value as a rendering takes it: a text, a sound with its rate, or a tensor."""
    if isinstance(rendering, TextRendering):
        return str(value)
    if isinstance(value, Mapping) and "sampling_rate" in value:
        wave = as_value(value["array"], "a recording").float()
        return Sound(wave if wave.ndim == 1 else wave.mean(0), int(value["sampling_rate"]))
    return value if isinstance(value, tuple) else as_value(value, "a row")


def unequal(tensors: Sequence[Tensor], rows: Sequence[int]) -> str:
    """What differs between rows of one column, and what to do, for an error."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len({shape[1:] for shape in shapes}) == 1:
        return f"rows have {told_lengths([shape[0] for shape in shapes])}: lengths={{MODALITY: Padded()}}"
    other = next(place for place, shape in enumerate(shapes) if shape != shapes[0])
    return (
        f"row {rows[0]} has shape {shapes[0]}, row {rows[other]} has {shapes[other]}; make them one, by a rendering "
        "(renderings={MODALITY: PictureRendering(size=...)}) or a collate function (collate=)"
    )


def _cell(item: Any, column: Column) -> Any:
    return item if column == "" else item[column]


def source_of(
    items: Items,
    column: Column,
    there: Int64[Tensor, " R"],
    where: str,
    rendering: Rendering | None,
    length: Length | None,
) -> ItemRows:
    """The source of one column, with the shape and type of the first row that is there."""
    row = there[:1]
    try:
        read = _stacked(items.values(row, column), row, rendering, length)
    except (DataError, ShapeError) as error:
        raise type(error)(f"{where}: {error}") from error
    except CrossdistillError:
        raise
    except Exception as error:
        raise DataError(f"{where}: row {int(row)} cannot be read: {said(error)}") from error
    example = read if isinstance(read, Tensor) else next(iter(read.values()))
    shape = tuple(example.shape[1:])
    spec = InputSpec("array", shape) if rendering is None else rendering.spec(shape)
    if length is not None:
        spec = InputSpec("array", shape, {"length": length.model_dump(mode="json")})
    return ItemRows(items, column, spec, example.dtype, rendering=rendering, length=length, there=there)


def parts_of(value: Input) -> dict[str, Tensor]:
    """The tensors of an input by name."""
    return {"": value} if isinstance(value, Tensor) else dict(value)
