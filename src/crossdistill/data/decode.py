"""Turns one file, or one array in memory, into the input of a saved student, prepared as its training data were."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data.array_file import native, read_array
from crossdistill.data.audio.sound_file import SOUND_SUFFIXES, read_sound
from crossdistill.data.input_options import check_options, picture_size
from crossdistill.data.picture_file import check_depth
from crossdistill.data.prepare import LUMINANCE, example_shapes, fit_length, normalise, prepare_pictures, prepare_sound
from crossdistill.data.rendered_example import decoded_array, decoded_file
from crossdistill.data.rendering import rendering_of
from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.files import file_fault

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAY_SUFFIX = ".npy"
_READS = {
    "image": (*PICTURE_SUFFIXES, ARRAY_SUFFIX),
    "log-mel": (*SOUND_SUFFIXES, ARRAY_SUFFIX),
    "array": (ARRAY_SUFFIX,),
}


def decode(spec: InputSpec, path: Path) -> Input:
    """Read a file as the network's input: a tensor of shape `spec.shape`, without a batch dimension.

    Pictures become grey, or RGB if the network reads three channels, and are resized by area averaging. Sounds become
    mono, are resampled, and are cut or padded with silence at both ends. Then the preparation of the training data
    applies. A `.npy` holds an array for `prepare_array`. Where the specification holds a rendering, the file is decoded
    and rendered as in training; a text, or a recording of a length that varies, is then a mapping of tensors.

    Raises:
        DataError: the file is missing, unreadable, truncated, of the wrong kind or shape, or holds NaN; names it.
        MissingExtraError: the package that reads such files is not installed; names its extra.
    """
    rendering = rendering_of(spec, str(path))
    if rendering is not None:
        rendered: Input = rendering.apply(decoded_file(rendering, spec, path))
        return rendered
    if spec.kind not in _READS:
        raise DataError(
            f"{path}: this student reads {spec.kind!r}, for which there is no file format; pass it a tensor"
        )
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


def prepare_array(spec: InputSpec, array: NDArray[Any] | Tensor, who: str) -> Input:
    """One example from an array, as a tensor of shape `spec.shape`.

    The array is the content of a file before the preparation: a picture (height, width), or (height, width, 3) for a
    network that reads colours, as bytes, 16-bit integers or numbers in [0, 1]; or a waveform at the network's rate. An
    array of shape `spec.shape` is the network's input itself. `who` begins the text of an error.

    Raises:
        DataError: wrong shape, not numeric, NaN or Inf, or outside the range of a picture; names `who`.
    """
    shape, input_shape = tuple(array.shape), tuple(spec.shape)
    if spec.kind in ("image", "log-mel") and shape == input_shape:
        if spec.kind == "image" and not _is_floating(array):
            raise DataError(
                f"{who}: a picture of whole numbers in the shape of the network's input {input_shape}, which is read "
                f"without preparation; give it as {_raw_picture(input_shape)}, or as the network's input in floating "
                "point"
            )
        return _numbers(array, who).float()
    rendering = rendering_of(spec, who)
    if rendering is not None:
        rendered: Input = rendering.apply(decoded_array(rendering, spec, array, who))
        return rendered
    if spec.kind == "image":
        check_options(spec, who)
        if shape == _raw_picture(input_shape):
            return prepare_pictures(_picture_numbers(array, who)[None], spec)[0]
    elif spec.kind == "log-mel" and len(shape) == 1 and shape[0] > 0:
        check_options(spec, who)
        wave = array[_middle(shape[0], spec.options["samples"])]
        return prepare_sound(fit_length(_numbers(wave, who).float(), spec.options["samples"])[None], spec)[0]
    elif spec.kind not in ("image", "log-mel") and shape in example_shapes(input_shape):
        ready = _numbers(array, who).reshape(input_shape)
        how = spec.options.get("normalisation") if spec.kind == "array" else None
        if how is None:
            return ready
        check_options(spec, who)
        return normalise(ready[None].float(), how)[0]
    readable: list[Any] = [input_shape]
    if spec.kind == "log-mel":
        readable.append("(samples,)")
    else:
        readable += [_raw_picture(input_shape)] if spec.kind == "image" else example_shapes(input_shape)
    shapes = " or ".join(str(readable_shape) for readable_shape in dict.fromkeys(readable))
    raise DataError(f"{who}: an array of shape {shape}; this student reads {shapes}")


def _middle(length: int, wanted: int) -> slice:
    """The part of a long waveform that `fit_length` keeps; the rest of a mapped file is not read."""
    start = max(0, (length - wanted) // 2)
    return slice(start, start + min(length, wanted))


def _raw_picture(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a picture before its preparation: channels last, as in Pillow and NumPy."""
    size = picture_size(input_shape)
    if size is None:
        return input_shape
    return (*size[1:], 3) if size[0] == 3 else size[1:]


def _is_floating(array: NDArray[Any] | Tensor) -> bool:
    return array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"


def _numbers(array: NDArray[Any] | Tensor, who: str) -> Tensor:
    """The array as a CPU tensor: float32 and finite for floating point and booleans, other types unchanged."""
    if isinstance(array, Tensor):
        values = array.detach().cpu()
    else:
        if array.dtype.kind not in "biuf":
            raise DataError(f"{who}: holds {str(array.dtype)[:80]}; wanted numbers")
        with np.errstate(over="ignore"):
            values = torch.from_numpy(native(array.astype(np.float32) if array.dtype.kind in "fb" else array))
    if values.is_complex():
        raise DataError(f"{who}: holds {values.dtype}; wanted real numbers")
    if not values.is_floating_point() and values.dtype != torch.bool:
        return values
    values = values.float()
    if not values.isfinite().all():
        raise DataError(f"{who}: holds NaN or Inf")
    return values


def _picture_numbers(array: NDArray[Any] | Tensor, who: str) -> Tensor:
    """A picture in [0, 1], channels first: bytes and 16-bit integers are divided by their largest value."""
    name = str(array.dtype).removeprefix("torch.")
    largest = {"uint8": 255, ">u2": 65535, "uint16": 65535}.get(name, 1)
    values = _numbers(array, who).float() / largest
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{who}: a picture's numbers are bytes, 16-bit or in [0, 1]; found {low:g} to {high:g} as {name}"
        )
    return values.permute(2, 0, 1) if values.ndim == 3 else values


def _read_picture(path: Path, spec: InputSpec) -> Float[Tensor, "*channels H W"]:
    """A picture in [0, 1] of the network's size, grey or RGB; transparent pixels become black."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading pictures", "pillow", "image") from error
    size = picture_size(tuple(spec.shape))
    assert size is not None
    channels, height, width = size
    with path.open("rb") as file:
        check_depth(path, os.pread(file.fileno(), 26, 0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A picture that is so large that Pillow warns is rejected.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                pixels = _pixels(file, channels)
    except Exception as error:  # decoders may raise anything for a damaged file
        cause = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: truncated, or not a readable picture: {cause}") from error
    resized = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], (height, width), mode="area")[0]
    return resized if channels == 3 else resized[0]


def _pixels(file: Any, channels: int) -> NDArray[np.float32]:
    """All pixels (channels, height, width) in [0, 1], at the bit depth of the file."""
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
    # Pillow's conversion to grey rounds to bytes, so it is not used.
    return np.tensordot(np.array(LUMINANCE, np.float32), colours, 1)[None].astype(np.float32)
