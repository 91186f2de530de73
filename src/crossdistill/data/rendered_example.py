"""One file, or one array in memory, for a student whose input is a rendering of decoded files."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.array_file import native, read_array
from crossdistill.data.audio.any_sound import SOUND_FILES, decode_sound
from crossdistill.data.picture_file import PICTURE_FILES, decode_picture
from crossdistill.data.rendering import ArrayRendering, PictureRendering, Rendering, Sound, SoundRendering
from crossdistill.errors import DataError
from crossdistill.runtime.files import file_fault

ARRAYS, TEXTS = (".npy",), (".txt",)
MOST_TEXT_BYTES = 2**24


def decoded_file(rendering: Rendering, spec: InputSpec, path: Path) -> Any:
    """A file's content as the rendering takes it: a picture, a recording, a text or an array.

    Raises:
        DataError: the file is missing, unreadable, or of another kind; names it.
        MissingExtraError: the package that reads such files is not installed.
    """
    kind, suffixes = _reads(rendering)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise DataError(f"{path}: this student reads {kind} from {', '.join(suffixes)}, not from {suffix!r}")
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    if suffix in ARRAYS:
        return decoded_array(rendering, spec, read_array(path, mapped=True), str(path))
    if isinstance(rendering, PictureRendering):
        return torch.from_numpy(decode_picture(path))
    if isinstance(rendering, SoundRendering):
        wave, rate = decode_sound(path)
        return Sound(torch.from_numpy(wave), rate)
    if path.stat().st_size > MOST_TEXT_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes; a text has at most {MOST_TEXT_BYTES:,}")
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text: {error}") from error


def decoded_array(rendering: Rendering, spec: InputSpec, array: NDArray[Any] | Tensor, who: str) -> Any:
    """An array as the rendering takes it: a picture (h, w) or (h, w, 3), a waveform at the network's rate, numbers.

    Pictures hold bytes, 16-bit integers or numbers in [0, 1]. `who` begins the text of an error.

    Raises:
        DataError: another shape, not numeric, NaN or Inf, or outside the range of a picture.
    """
    shape = tuple(array.shape)
    values, name = _numbers(array, who)
    if isinstance(rendering, PictureRendering) and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        largest = {"uint8": 1.0, "uint16": 257.0}.get(name, 1 / 255)
        scaled = values.float() / largest
        if not 0 <= float(scaled.min()) <= float(scaled.max()) <= 255.01:
            raise DataError(
                f"{who}: a picture's numbers are bytes, 16-bit or in [0, 1]; found {float(values.min()):g} to "
                f"{float(values.max()):g} as {name}"
            )
        return scaled.permute(2, 0, 1) if len(shape) == 3 else scaled[None]
    if isinstance(rendering, SoundRendering) and len(shape) == 1 and shape[0] > 0:
        return Sound(values.float(), rendering.rate)
    if isinstance(rendering, ArrayRendering) and shape == tuple(spec.shape):
        return values
    kind, _ = _reads(rendering)
    wanted = {"pictures": "(height, width, 3) or (height, width)", "recordings": "(samples,)"}.get(
        kind, str(spec.shape)
    )
    raise DataError(f"{who}: an array of shape {shape}; this student reads {kind}, of arrays {wanted}")


def _numbers(array: NDArray[Any] | Tensor, who: str) -> tuple[Tensor, str]:
    """The array as a tensor, and the name of its type."""
    if isinstance(array, Tensor):
        values, name = array.detach().cpu(), str(array.dtype).removeprefix("torch.")
    else:
        if array.dtype.kind not in "biuf":
            raise DataError(f"{who}: holds {str(array.dtype)[:80]}; wanted numbers")
        name = array.dtype.newbyteorder("=").name
        values = torch.from_numpy(native(array.astype("float32") if name in ("uint16", "float16") else array))
    if values.is_complex():
        raise DataError(f"{who}: holds {values.dtype}; wanted real numbers")
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DataError(f"{who}: holds NaN or Inf")
    return values, name


def _reads(rendering: Rendering) -> tuple[str, tuple[str, ...]]:
    """What a rendering takes, in words, and the suffixes of such files."""
    if isinstance(rendering, PictureRendering):
        return "pictures", (*PICTURE_FILES, *ARRAYS)
    if isinstance(rendering, SoundRendering):
        return "recordings", (*SOUND_FILES, *ARRAYS)
    return ("numbers", ARRAYS) if isinstance(rendering, ArrayRendering) else ("texts", TEXTS)
