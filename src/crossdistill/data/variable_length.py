"""Rows of variable length as batches: padded to the longest with their lengths, or cropped to one length."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data.row_random import RowRandom
from crossdistill.data.workers import reading
from crossdistill.errors import DataError, ShapeError
from crossdistill.runtime.hashing import derived_seed, key_hash, tensor_hash

MOST_LENGTH = 2**28


class Length(BaseModel):
    """What becomes of rows of different lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: ClassVar[int] = 1
    """Rises when equal settings give other numbers: it is a part of `key`."""

    def batch(self, values: Sequence[Tensor], rows: Int64[Tensor, " B"]) -> Input:
        """Values of some rows, lengths first (L, ...), as one batch."""
        raise TypeError(f"{type(self).__name__} makes no batches: Padded and Cropped do")

    def shape(self, longest: Sequence[int]) -> tuple[int, ...]:
        """The shape of an example, of the longest one where it varies."""
        return tuple(longest)

    @property
    def key(self) -> str:
        """A hash of the settings."""
        return key_hash([type(self).__name__, self.version, self.model_dump(mode="json")])

    def rows(self, values: Sequence[Any]) -> "UnequalRows":
        """Arrays of different lengths (L, ...) as an input of `Dataset.from_arrays`.

        Raises:
            ShapeError: they differ in more than their lengths.
            DataError: there is none, or one holds no numbers.
        """
        where = f"{type(self).__name__}.rows"
        tensors = [_as_values(value, f"{where}: row {row}") for row, value in enumerate(values)]
        return UnequalRows(tensors, self, where)


class Padded(Length):
    """Rows padded with zeros at their ends to the longest of their batch: {"values", "lengths"} or with a mask.

    Outputs of a network that ignores the padding differ between batches by rounding alone.
    """

    multiple: int = Field(1, ge=1, le=2**16, description="lengths of batches are multiples of this")
    mask: bool = Field(False, description='"mask" (B, length) of the values that are there, instead of "lengths"')

    def batch(self, values: Sequence[Tensor], rows: Int64[Tensor, " B"]) -> Input:
        """Values of some rows, lengths first (L, ...), as one batch (B, longest, ...)."""
        lengths = torch.tensor([len(value) for value in values], dtype=torch.int64)
        longest = -(-int(lengths.max()) // self.multiple) * self.multiple
        padded = values[0].new_zeros(len(values), longest, *values[0].shape[1:])
        for number, value in enumerate(values):
            padded[number, : len(value)] = value
        if self.mask:
            return {"values": padded, "mask": torch.arange(longest) < lengths[:, None]}
        return {"values": padded, "lengths": lengths}

    def shape(self, longest: Sequence[int]) -> tuple[int, ...]:
        """The shape of the longest example."""
        return (-(-longest[0] // self.multiple) * self.multiple, *longest[1:])


class Cropped(Length):
    """A piece of `length` of each row; shorter rows are padded at their ends with zeros, their mean, or their edge.

    A "random" place is a function of the seed and the row, so a row has the same piece whenever it is read.
    """

    length: Annotated[int, Field(ge=1, le=MOST_LENGTH)]
    place: Literal["random", "start", "middle"] = "random"
    fill: Literal["zeros", "mean", "edge"] = "zeros"
    seed: int = Field(0, ge=0)

    def batch(self, values: Sequence[Tensor], rows: Int64[Tensor, " B"]) -> Tensor:
        """Values of some rows, lengths first (L, ...), as one batch (B, length, ...)."""
        drawn = RowRandom(derived_seed("crop", self.seed), rows).uniform(1)[:, 0].tolist()
        return torch.stack([self._piece(value, part) for value, part in zip(values, drawn, strict=True)])

    def shape(self, longest: Sequence[int]) -> tuple[int, ...]:
        """The shape of an example."""
        return (self.length, *longest[1:])

    def _piece(self, value: Tensor, drawn: float) -> Tensor:
        spare = len(value) - self.length
        if spare >= 0:
            part = {"random": int(drawn * (spare + 1)), "middle": spare // 2, "start": 0}[self.place]
            return value[part : part + self.length]
        if not len(value) or self.fill == "zeros":
            end = value.new_zeros(())
        elif self.fill == "edge":
            end = value[-1:]
        else:
            end = value.float().mean(0, keepdim=True).to(value.dtype)
        return torch.cat([value, end.expand(-spare, *value.shape[1:])])


class UnequalRows:
    """Arrays (L, ...) of different lengths in memory as a row source; `length` makes batches of them.

    Raises:
        ShapeError: the arrays differ in more than their lengths.
        DataError: there is none.
    """

    def __init__(self, values: Sequence[Tensor], length: Length, where: str) -> None:
        if not values:
            raise DataError(f"{where} has no rows")
        first = values[0]
        for row, value in enumerate(values):
            if value.ndim < 1 or value.shape[1:] != first.shape[1:] or value.dtype != first.dtype:
                raise ShapeError(
                    f"{where}: row {row} is {_form(value)}, and row 0 is {_form(first)}; rows may differ in their "
                    "lengths, the first dimension, alone"
                )
        self._values, self._length = list(values), length
        lengths = torch.tensor([len(value) for value in values], dtype=torch.int64)
        self.lengths = lengths if isinstance(length, Padded) else None
        self.dtype, self.deterministic, self.in_memory = first.dtype, True, True
        shape = length.shape((int(lengths.max()), *first.shape[1:]))
        self.spec = InputSpec("array", shape, {"length": length.model_dump(mode="json")})
        self.shape = (len(values), *shape)
        self.fingerprint = key_hash([length.key, [tensor_hash(value) for value in values]])

    def __len__(self) -> int:
        return len(self._values)

    def fetch(self, rows: Int64[Tensor, " B"]) -> Input:
        """The rows as one batch."""
        for row in rows.tolist():
            reading(row)
        return self._length.batch([self._values[row] for row in rows.tolist()], rows)


def told_lengths(lengths: Sequence[int]) -> str:
    """The lengths of unequal rows in a few words, and what to do with them, for an error."""
    shown = ", ".join(map(str, lengths[:4])) + (", ..." if len(lengths) > 4 else "")
    other = next((f"; row {row} is the first of another" for row, one in enumerate(lengths) if one != lengths[0]), "")
    middle = sorted(lengths)[len(lengths) // 2]
    return (
        f"lengths {shown} ({min(lengths)} to {max(lengths)}{other}); Padded() pads each batch and passes the lengths "
        f"on, Cropped(length={middle}) takes pieces of one length (crossdistill.data.variable_length)"
    )


def _as_values(value: Any, where: str) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
    if tensor.is_complex() or tensor.ndim < 1:
        raise DataError(f"{where} is {_form(tensor)}; wanted real numbers, lengths first")
    return tensor.float() if tensor.dtype == torch.float64 else tensor.detach()


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
