"""One file, or one array in memory -> the input of a saved student, prepared as its training data were."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.array_file import native, read_array
from crossdistill.data.audio.sound_file import SOUND_SUFFIXES, read_sound
from crossdistill.data.input_options import check_options, picture_size
from crossdistill.data.prepare import example_shapes, fit_length, normalise, prepare_pictures, prepare_sound
from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.files import file_fault

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAY_SUFFIX = ".npy"
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue, as Pillow has it (ITU-R 601-2)."""
_READS = {
    "image": (*PICTURE_SUFFIXES, ARRAY_SUFFIX),
    "log-mel": (*SOUND_SUFFIXES, ARRAY_SUFFIX),
    "array": (ARRAY_SUFFIX,),
}


def decode(spec: InputSpec, path: Path) -> Tensor:
    """The tensor of `spec.shape` that the network reads, without a batch dimension.

    Pictures become grey, or RGB where the network reads three channels, and are resized by averaging over areas; sounds
    become mono, are resampled and lose both ends or gain silence at them. Then both go through exactly the steps of the
    training data. A `.npy` holds what `prepare_array` takes.

    Raises:
        DataError: the file is missing, unreadable, truncated, of the wrong kind or shape, or holds NaN; names it.
        MissingExtraError: the package that reads such files is not installed; says its extra.
    """
    if spec.kind not in _READS:
        raise DataError(f"{path}: this student reads {spec.kind!r}, which no file can be turned into; pass it a tensor")
    suffix = path.suffix.lower()
    if suffix not in _READS[spec.kind]:
        raise DataError(
            f"{path}: this student reads {spec.kind} from {', '.join(_READS[spec.kind])}, not from {suffix!r}"
        )
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    if suffix == ARRAY_SUFFIX:
        return prepare_array(spec, read_array(path, mapped=True), str(path))
    check_options(spec, str(path))
    if spec.kind == "image":
        return prepare_pictures(_read_picture(path, spec)[None], spec)[0]
    wave, _ = read_sound(path, spec.options["sample_rate"])
    return prepare_sound(fit_length(torch.from_numpy(wave), spec.options["samples"])[None], spec)[0]


def prepare_array(spec: InputSpec, found: NDArray[Any] | Tensor, who: str) -> Tensor:
    """One example out of an array, as `spec.shape`.

    It holds what a file would, before the steps of the training data: a picture (height, width), or (height, width, 3)
    for a network that reads colours, as bytes, 16-bit numbers or numbers in [0, 1]; a waveform at the right rate. Or,
    with the network's own dimensions, its input as it is.

    Raises:
        DataError: it has another shape, holds no numbers, NaN or Inf, or numbers that no picture has; names `who`.
    """
    shape, own = tuple(found.shape), tuple(spec.shape)
    if spec.kind in ("image", "log-mel") and shape == own:
        if spec.kind == "image" and not _is_floating(found):
            raise DataError(
                f"{who}: a picture of whole numbers with the network's own dimensions {own}, which are read as they "
                f"are; give it as {_raw_picture(own)}, or as the network's input in floating point"
            )
        return _numbers(found, who).float()
    if spec.kind == "image":
        check_options(spec, who)
        if shape == _raw_picture(own):
            return prepare_pictures(_picture_numbers(found, who)[None], spec)[0]
    elif spec.kind == "log-mel" and len(shape) == 1 and shape[0] > 0:
        check_options(spec, who)
        wave = found[_middle(shape[0], spec.options["samples"])]
        return prepare_sound(fit_length(_numbers(wave, who).float(), spec.options["samples"])[None], spec)[0]
    elif spec.kind not in ("image", "log-mel") and shape in example_shapes(own):
        ready = _numbers(found, who).reshape(own)
        how = spec.options.get("normalisation") if spec.kind == "array" else None
        if how is None:
            return ready
        check_options(spec, who)
        return normalise(ready[None].float(), how)[0]
    wanted: list[Any] = [own]
    if spec.kind == "log-mel":
        wanted.append("(samples,)")
    else:
        wanted += [_raw_picture(own)] if spec.kind == "image" else example_shapes(own)
    said = " or ".join(str(one) for one in dict.fromkeys(wanted))
    raise DataError(f"{who}: an array of shape {shape}; this student reads {said}")


def _middle(found: int, wanted: int) -> slice:
    """The part of a long waveform that `fit_length` keeps: the rest of a mapped file is not read."""
    start = max(0, (found - wanted) // 2)
    return slice(start, start + min(found, wanted))


def _raw_picture(own: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions of a picture before its preparation: as Pillow and NumPy have them."""
    size = picture_size(own)
    if size is None:
        return own
    return (*size[1:], 3) if size[0] == 3 else size[1:]


def _is_floating(found: NDArray[Any] | Tensor) -> bool:
    return found.is_floating_point() if isinstance(found, Tensor) else found.dtype.kind == "f"


def _numbers(found: NDArray[Any] | Tensor, who: str) -> Tensor:
    """As a tensor of this machine: floating point in single precision and finite, other numbers as they are."""
    if isinstance(found, Tensor):
        values = found.detach().cpu()
    else:
        if found.dtype.kind not in "biuf":
            raise DataError(f"{who}: holds {str(found.dtype)[:80]}; wanted numbers")
        with np.errstate(over="ignore"):
            values = torch.from_numpy(native(found.astype(np.float32) if found.dtype.kind in "fb" else found))
    if values.is_complex():
        raise DataError(f"{who}: holds {values.dtype}; wanted real numbers")
    if not values.is_floating_point() and values.dtype != torch.bool:
        return values
    values = values.float()
    if not values.isfinite().all():
        raise DataError(f"{who}: holds NaN or Inf")
    return values


def _picture_numbers(found: NDArray[Any] | Tensor, who: str) -> Tensor:
    """A picture in [0, 1], channels first: bytes and 16-bit numbers by their range, others as they are."""
    name = str(found.dtype).removeprefix("torch.")
    largest = {"uint8": 255, ">u2": 65535, "uint16": 65535}.get(name, 1)
    values = _numbers(found, who).float() / largest
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{who}: a picture's numbers are bytes, 16-bit or in [0, 1]; found {low:g} to {high:g} as {name}"
        )
    return values.permute(2, 0, 1) if values.ndim == 3 else values


def _read_picture(path: Path, spec: InputSpec) -> Float[Tensor, "*channels H W"]:
    """A picture in [0, 1] of the size that the network reads, grey or RGB; what is transparent is dark."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading pictures", "pillow", "image") from error
    size = picture_size(tuple(spec.shape))
    assert size is not None
    channels, height, width = size
    _check_depth(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A picture so large that Pillow warns of it is refused, not read.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                pixels = _pixels(file, channels)
    except Exception as error:  # of a damaged file its decoders may raise anything
        said = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: truncated, or not a readable picture: {said}") from error
    resized = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], (height, width), mode="area")[0]
    return resized if channels == 3 else resized[0]


def _pixels(file: Any, channels: int) -> NDArray[np.float32]:
    """All pixels (channels, height, width) in [0, 1], at the depth that the file has."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith("I"):
        whole = np.asarray(picture).astype(np.float32)
        clear = picture.info.get("transparency")
        whole = np.where(whole == clear, np.float32(0), whole) if isinstance(clear, int) else whole
        return np.repeat(whole[None] / np.float32(65535), channels, axis=0)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    if picture.mode in ("1", "L"):
        grey = np.asarray(picture.convert("L"), dtype=np.float32) / 255
        return np.repeat(grey[None], channels, axis=0)
    colours = np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    if channels == 3:
        return np.ascontiguousarray(colours)
    # Not Pillow's grey, which is rounded to bytes.
    return np.tensordot(np.array(LUMINANCE, np.float32), colours, 1)[None].astype(np.float32)


def _check_depth(path: Path) -> None:
    """Refuse what Pillow would cut down to eight bits without a word: PNG with 16 bits and more than one channel."""
    with path.open("rb") as file:
        head = os.pread(file.fileno(), 26, 0)
    if len(head) == 26 and head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] != 0:
        raise DataError(
            f"{path}: a colour picture, or one with transparency, of 16 bits, of which only eight can be read; save it "
            "as 16-bit grey or with eight bits, or give it as a .npy"
        )
