"""Settings of one input of a table, its type guessed from the cells, and its rendering measured on training rows."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from crossdistill.data.file_facts import SUFFIXES
from crossdistill.data.file_source import RENDERINGS, Files
from crossdistill.data.rendering import (
    ArrayRendering,
    PictureRendering,
    Rendering,
    SoundRendering,
    TextRendering,
)
from crossdistill.errors import DataError

ColumnType = Literal["image", "sound", "array", "text", "numbers"]
PICKLED = {
    ".npz": "it holds several arrays: write one .npy for each",
    ".pt": "a pickle can run code: write numpy.save(FILE, tensor.numpy())",
    ".pth": "a pickle can run code: write numpy.save(FILE, tensor.numpy())",
    ".pkl": "a pickle can run code: write numpy.save(FILE, array)",
    ".pickle": "a pickle can run code: write numpy.save(FILE, array)",
}
OF_SUFFIX = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes} | dict.fromkeys(
    PICKLED, "pickled"
)
SIDE = 64
"""Side of larger pictures, and of pictures of several sizes."""
RATE, LONGEST_S = 16_000, 5.0
OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "image": ("size", "channels"),
    "sound": ("rate", "seconds", "kind"),
    "text": ("tokenizer", "length"),
}
"""Settings that belong to one type of input."""
MEASURED_ROWS = 256
"""Training rows from which mean and deviation are measured."""


class InputColumn(BaseModel):
    """One input: a column of files, texts or numbers, or several columns of numbers, or one array file for all rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str | None = Field(default=None, description="name of the column")
    columns: tuple[str, ...] = Field(default=(), description="names of several columns of numbers, or as in pixel_*")
    glob: str | None = Field(default=None, description="of each row's file; {COLUMN} is a cell: images/{id}_*.png")
    file: Path | None = Field(default=None, description="a .npy whose row i belongs to row i of the table")
    type: ColumnType | None = Field(default=None, description="of the cells; null: guessed")
    size: tuple[int, int] | None = Field(default=None, description="height and width of pictures, in pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="of pictures: 1 grey, 3 colours")
    rate: int | None = Field(default=None, description="of recordings, in hertz")
    seconds: Annotated[float, Field(gt=0)] | None = Field(default=None, description="length of recordings")
    kind: Literal["log-mel", "wave"] = Field(default="log-mel", description="input made of recordings")
    tokenizer: Path | None = Field(default=None, description="of texts: folder of a tokenizer; null: bytes")
    length: int | None = Field(default=None, ge=1, description="of texts, in tokens")
    normalise: bool = Field(default=True, description="by mean and deviation of training rows")
    rendering: Annotated[Rendering, Field(discriminator="type")] | None = Field(
        default=None, description="every setting of the preparation, in place of the fields above"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A name alone is a column, a list of names several; braces make it a pattern of files."""
        if isinstance(value, str):
            return {"glob" if "{" in value and "}" in value else "column": value}
        return {"columns": tuple(value)} if isinstance(value, list | tuple) else value


def is_number(cell: Any) -> bool:
    """Whether a cell is a finite number, as such or as text."""
    if isinstance(cell, bool):
        return False
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return False
    return value == value and abs(value) != float("inf")


def type_of_cell(cell: Any) -> str:
    """Type of one cell: "image", "sound", "array", "pickled", "numbers", "text", or the name of another Python type."""
    if isinstance(cell, str):
        found = OF_SUFFIX.get(os.path.splitext(cell)[1].lower())
        if found is not None:
            return found
    if is_number(cell):
        return "numbers"
    return "text" if isinstance(cell, str) else type(cell).__name__


def type_of_column(cells: Sequence[Any], where: str, lines: Sequence[int]) -> ColumnType:
    """The type that all cells of a column have; empty ones have none.

    Raises:
        DataError: the column is empty, or its cells have several types; names the first line that differs.
    """
    kinds = [None if cell is None else type_of_cell(cell) for cell in cells]
    counts = Counter(kind for kind in kinds if kind is not None)
    if not counts:
        raise DataError(f"{where} is empty in every line")
    most = counts.most_common(1)[0][0]
    other = next((row for row, kind in enumerate(kinds) if kind not in (None, most)), None)
    # Texts may look like numbers or end like files.
    if most == "text" and counts["text"] > len(cells) // 2 and set(counts) <= {"text", "numbers"}:
        return "text"
    if other is not None:
        names = {"image": "pictures", "sound": "recordings", "array": "array files", "text": "texts"}
        said = ", ".join(f"{count:,} {names.get(kind, kind)}" for kind, count in counts.most_common())
        raise DataError(
            f"{where} holds cells of several types ({said}), first in line {lines[other]}: {cells[other]!r}; mend "
            "them, or say what all of them are, as in --set data.inputs.NAME.type=text"
        )
    if most == "pickled":
        suffix = Path(str(next(cell for cell in cells if cell is not None))).suffix.lower()
        raise DataError(f"{where} names {suffix} files, which are not read: {PICKLED[suffix]}")
    known: tuple[ColumnType, ...] = get_args(ColumnType)
    column_type = next((kind for kind in known if kind == most), None)
    if column_type is None:
        raise DataError(f"{where} holds values of the type {most}; wanted names of files, texts or numbers")
    return column_type


def unused_settings(settings: InputColumn, kind: str) -> str | None:
    """A sentence about settings that an input of this type has no use for; None: each has its use."""
    own = () if settings.rendering is not None else OF_TYPE.get(kind, ())
    given = [
        (name, of)
        for of, names in OF_TYPE.items()
        for name in names
        if name not in own and getattr(settings, name) != InputColumn.model_fields[name].default
    ]
    if not given:
        return None
    names = ", ".join(name for name, _ in given)
    if settings.rendering is not None:
        return f"{names}: the rendering decides this; set it there, or leave the rendering out"
    kinds = " and ".join(
        dict.fromkeys({"image": "pictures", "sound": "recordings", "text": "texts"}[of] for _, of in given)
    )
    return f"{names}: of {kinds} alone, and this input is of type {kind!r}; leave it out, or set the type"


def rendering_for(settings: InputColumn, kind: ColumnType, shapes: Sequence[tuple[int, ...]]) -> Rendering:
    """The rendering that the settings describe; what they leave open follows from the decoded shapes.

    Raises:
        DataError: the settings hold a rendering of something else.
    """
    if settings.rendering is not None:
        wanted = RENDERINGS[kind]
        if not isinstance(settings.rendering, wanted):
            raise DataError(
                f"a rendering of the type {settings.rendering.type!r} does not fit a column of type {kind!r}"
            )
        chosen: Rendering = settings.rendering
        return chosen
    if kind == "image":
        return _picture(settings, shapes)
    if kind == "sound":
        rate = settings.rate or RATE
        longest = max((shape[0] / shape[1] for shape in shapes), default=1.0)
        # About 64 ms: whole powers of two.
        n_fft = 2 ** max(5, round(math.log2(0.064 * rate)))
        seconds = settings.seconds or max(round(min(LONGEST_S, longest), 2), n_fft / rate)
        bands = 64 if rate >= RATE // 2 else 32
        return SoundRendering(rate=rate, kind=settings.kind, seconds=seconds, n_fft=n_fft, hop=n_fft // 4, bands=bands)
    if kind == "text":
        return TextRendering(tokenizer=settings.tokenizer, length=settings.length or 64)
    return ArrayRendering()


def _picture(settings: InputColumn, shapes: Sequence[tuple[int, ...]]) -> PictureRendering:
    sizes = {shape[1:] for shape in shapes}
    size = settings.size
    if size is None:
        alone = next(iter(sizes)) if len(sizes) == 1 else (SIDE, SIDE)
        size = (alone[0], alone[1]) if max(alone) <= SIDE else (SIDE, SIDE)
    channels = settings.channels or (1 if all(shape[0] == 1 for shape in shapes) else 3)
    # A picture of the wanted size or proportions is not cropped.
    shortest = None if sizes <= {size} else max(size)
    return PictureRendering(size=size, shortest=shortest, channels=channels)


def measured(rendering: Rendering, files: Files, rows: Sequence[int]) -> Rendering:
    """The rendering with mean and deviation of some training rows; as it is, where it has them already."""
    some = [rows[i] for i in torch.linspace(0, len(rows) - 1, min(MEASURED_ROWS, len(rows))).long().tolist()]
    some = [row for row in dict.fromkeys(some) if files.path(row) is not None]
    if isinstance(rendering, TextRendering) or not some:
        return rendering
    channels = rendering.channels if isinstance(rendering, PictureRendering) else 1
    count, sums = 0, torch.zeros(2, channels, dtype=torch.float64)
    for row in some:
        values = _values(rendering, files, row).double().reshape(channels, -1)
        sums += torch.stack([values.sum(1), values.square().sum(1)])
        count += values.shape[1]
    mean = sums[0] / max(1, count)
    deviation = (sums[1] / max(1, count) - mean.square()).clamp(min=0).sqrt()
    # Four digits: the order of sums, and so their last bits, depends on the number of threads.
    means = tuple(float(f"{value:.4g}") for value in mean.tolist())
    deviations = tuple(float(f"{value:.4g}") if value > 1e-6 else 1.0 for value in deviation.tolist())
    if isinstance(rendering, SoundRendering):
        return rendering.model_copy(update={"mean": means[0], "deviation": deviations[0]})
    return rendering.model_copy(update={"mean": means, "deviation": deviations})


def _values(rendering: Rendering, files: Files, row: int) -> torch.Tensor:
    (decoded,) = files.decoded([row])
    values = rendering.apply(decoded)
    assert isinstance(values, torch.Tensor)
    return values


def unmeasured(rendering: Rendering) -> bool:
    """Whether mean and deviation have their defaults."""
    plain: Mapping[str, Any] = {"mean": (0.0, ()), "deviation": (1.0, ())}
    return all(getattr(rendering, name, ()) in defaults for name, defaults in plain.items())
