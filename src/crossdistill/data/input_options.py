"""The options of an `InputSpec` as typed settings with limits, since they may come from an untrusted file."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from crossdistill.batch import InputSpec
from crossdistill.errors import DataError

LOWEST_RATE, HIGHEST_RATE = 1000, 768_000
"""Range of sample rates in hertz: speech needs more than the lowest, and no recorder exceeds the highest."""
MOST_SAMPLES = 2**28
"""Largest recording in samples: 1 GiB in single precision, 4.6 hours at 16 kHz."""
MOST_NUMBERS = 2**28
"""Largest example in numbers: 1 GiB in single precision."""
MOST_CLASSES, MOST_NAME, MOST_LABEL = 1_000_000, 200, 1000
"""Most classes, and most characters in the name of a modality and in that of a class."""
MOST_DEPTH, MOST_VALUES, MOST_TEXT = 8, 10_000, 10_000
"""Limits of options: nesting depth, number of values, and characters of one text."""
MOST_BINS = 2**28
"""Largest spectrogram, frequencies times frames."""
MOST_FILTERS = 2**24
"""Largest mel filter bank, bands times frequencies."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Options(BaseModel):
    # A user's data set may add options for information.
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class PerSample(_Options):
    """Scale each example separately to [0, 1]."""

    kind: Literal["per-sample min-max"]


class MinMax(_Options):
    """Map two values, measured on the training split, to 0 and 1."""

    kind: Literal["min-max"]
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _ordered(self) -> "MinMax":
        if not self.low < self.high:
            raise ValueError(f"wanted low < high, found {self.low:g} and {self.high:g}")
        return self


class MeanAndDeviation(_Options):
    """Subtract the mean and divide by the standard deviation, both measured on the training split."""

    kind: Literal["mean and standard deviation"]
    mean: Finite
    deviation: Positive


Normalisation = Annotated[PerSample | MinMax | MeanAndDeviation, Field(discriminator="kind")]


class PictureOptions(_Options):
    """Preparation of a picture; without a normalisation it stays in [0, 1]."""

    normalisation: Normalisation | None = None


class SoundOptions(_Options):
    """Preparation of a recording as a log-mel spectrogram: hertz, samples, bands, decibels."""

    sample_rate: int = Field(ge=LOWEST_RATE, le=HIGHEST_RATE)
    n_fft: int = Field(ge=2, le=2**18)
    hop: int = Field(ge=1, le=2**20)
    bands: int = Field(ge=1, le=4096)
    samples: int = Field(ge=1, le=MOST_SAMPLES)
    top_db: Positive | None
    level: Positive | None = None
    normalisation: Normalisation

    @model_validator(mode="after")
    def _bounded(self) -> "SoundOptions":
        frames, bins = 1 + self.samples // self.hop, self.n_fft // 2 + 1
        if frames * bins > MOST_BINS or self.bands * bins > MOST_FILTERS:
            raise ValueError(f"a spectrogram of {bins:,} frequencies, {frames:,} frames and {self.bands:,} bands")
        return self


def check_plain(value: Any, depth: int = 0) -> int:
    """Check that options are plain JSON within the limits, and return their number of values.

    Raises:
        ValueError: nested too deeply, too many values, a text that is too long, or a number that is not finite or has
            more than 63 bits.
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"options are nested more than {MOST_DEPTH} deep")
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise ValueError(f"options hold a text of {len(value):,} characters; at most {MOST_TEXT:,}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"options hold {value}; numbers are finite")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"options hold a whole number of {value.bit_length()} bits; at most 63")
    if not isinstance(value, str | int | float | dict | list | tuple | None):
        raise ValueError(
            f"options hold a {type(value).__module__}.{type(value).__name__}; wanted plain numbers and texts"
        )
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise ValueError("options have keys that are not texts")
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    total = 1 + sum(check_plain(part, depth + 1) for part in inner)
    if total > MOST_VALUES:
        raise ValueError(f"options hold more than {MOST_VALUES:,} values")
    return total


def check_described(classes: Sequence[str], specs: Mapping[str, InputSpec], who: str) -> None:
    """Check, before training, that a student of these data can be saved and loaded again.

    Raises:
        DataError: a name or a shape exceeds the limits of a student's folder, or options are not plain JSON.
    """
    too_long = next((name for name in classes if len(name) > MOST_LABEL), None)
    if len(classes) > MOST_CLASSES or too_long is not None:
        fault = f"{len(classes):,} classes" if too_long is None else f"a class name of {len(too_long):,} characters"
        raise DataError(f"{who}: {fault}; at most {MOST_CLASSES:,} classes with names of {MOST_LABEL:,} characters")
    for name, spec in specs.items():
        if not 0 < len(name) <= MOST_NAME or not 0 < len(spec.kind) <= MOST_NAME:
            raise DataError(
                f"{who}: names of modalities and kinds have 1 to {MOST_NAME} characters; found {name[:40]!r}"
            )
        if math.prod(spec.shape) > MOST_NUMBERS:
            raise DataError(
                f"{who}: an example of {name!r} has the shape {spec.shape}; at most {MOST_NUMBERS:,} numbers"
            )
        try:
            check_plain(dict(spec.options))
        except ValueError as error:
            raise DataError(f"{who}: the options of {name!r} are written to the student's folder: {error}") from error
        if any("/" in key for key in spec.parameters):
            raise DataError(f"{who}: fitted tensors of {name!r}: {sorted(spec.parameters)}; a name holds no '/'")


_KINDS: dict[str, TypeAdapter[Any]] = {
    "image": TypeAdapter(PictureOptions),
    "log-mel": TypeAdapter(SoundOptions),
    "array": TypeAdapter(PictureOptions),
}


def check_options(spec: InputSpec, who: str) -> None:
    """Check that files can be turned into this input: its options are valid and fit its shape and fitted tensors.

    Raises:
        DataError: an option is missing, invalid, or does not fit the shape; names it.
    """
    if spec.kind not in _KINDS:
        return
    try:
        options = _KINDS[spec.kind].validate_python(dict(spec.options))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])[:100]
        raise DataError(
            f"{who}: this student's input {spec.kind!r} cannot be made of a file: its option {where!r}: {fault['msg']}"
        ) from error
    shape = tuple(spec.shape)
    if isinstance(options, SoundOptions):
        wanted = (1, options.bands, 1 + options.samples // options.hop)
        if shape != wanted:
            raise DataError(f"{who}: this student reads {shape}, but its options make spectrograms of {wanted}")
    if spec.kind == "image":
        _check_picture(spec, who)


def picture_size(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Channels, height and width of a picture's tensor (H, W), (1, H, W) or (3, H, W); None for other shapes."""
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 and shape[0] in (1, 3) else None


def _check_picture(spec: InputSpec, who: str) -> None:
    shape = tuple(spec.shape)
    if picture_size(shape) is None:
        raise DataError(
            f"{who}: pictures are read as (H, W), (1, H, W) or (3, H, W), and this student reads {shape}; pass it a "
            "tensor"
        )
    if not spec.parameters:
        return
    numbers = math.prod(shape)
    shapes = {name: tuple(value.shape) for name, value in spec.parameters.items()}
    right = (
        set(shapes) == {"mean", "basis"}
        and shapes["mean"] == (numbers,)
        and len(shapes["basis"]) == 2
        and shapes["basis"][1] == numbers
        and all(value.is_floating_point() for value in spec.parameters.values())
    )
    if not right:
        raise DataError(
            f"{who}: this student's fitted tensors are {shapes}; wanted mean ({numbers},) and basis (components, "
            f"{numbers})"
        )
