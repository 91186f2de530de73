"""One file -> one input of a saved student, prepared as its training data were."""

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.array_file import read_array
from crossdistill.data.prepare import fit_length, normalise, prepare_pictures, prepare_sound
from crossdistill.data.sound_file import SOUND_SUFFIXES, read_sound
from crossdistill.errors import DataError, MissingExtraError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAY_SUFFIX = ".npy"
_READS = {
    "image": (*PICTURE_SUFFIXES, ARRAY_SUFFIX),
    "log-mel": (*SOUND_SUFFIXES, ARRAY_SUFFIX),
    "array": (ARRAY_SUFFIX,),
}


def decode(spec: InputSpec, path: Path) -> Tensor:
    """The tensor of `spec.shape` that the network reads, without a batch dimension.

    Pictures become grey and are resized by averaging over areas; sounds become mono, are resampled and lose both ends
    or gain silence at them. Then both go through exactly the steps of the training data. A `.npy` holds the same
    before those steps, a picture (height, width) of the right size (bytes, or numbers in [0, 1]) or a waveform at the
    right rate; or, with the network's own dimensions, its input as it is.

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
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if suffix == ARRAY_SUFFIX:
        return _from_array(spec, path)
    if spec.kind == "image":
        return prepare_pictures(_read_picture(path, spec.shape[-2], spec.shape[-1])[None], spec)[0]
    wave, _ = read_sound(path, spec.options["sample_rate"])
    return prepare_sound(fit_length(torch.from_numpy(wave), spec.options["samples"])[None], spec)[0]


def _from_array(spec: InputSpec, path: Path) -> Tensor:
    found = read_array(path)
    values = torch.from_numpy(np.asarray(found, dtype=np.float32 if found.dtype.kind in "fb" else found.dtype))
    if values.is_floating_point() and not values.isfinite().all():
        raise DataError(f"{path}: holds NaN or Inf")
    wanted: list[tuple[object, ...]] = [tuple(spec.shape)]
    if spec.kind == "array":
        without = tuple(spec.shape[1:]) if spec.shape[:1] == (1,) else wanted[0]
        if tuple(values.shape) in (wanted[0], without):
            ready = values.reshape(spec.shape)
            how = spec.options.get("normalisation")
            return ready if how is None else normalise(ready[None].float(), how)[0]
        wanted.append(without)
    elif tuple(values.shape) == tuple(spec.shape):
        return values.float()
    elif spec.kind == "image":
        wanted.append(tuple(spec.shape[1:]))
        if tuple(values.shape) == tuple(spec.shape[1:]):
            grey = values.float() / 255 if found.dtype == np.uint8 else values.float()
            if float(grey.min()) < 0 or float(grey.max()) > 1:
                found_range = f"{float(grey.min()):g} to {float(grey.max()):g}"
                raise DataError(f"{path}: a picture's numbers are bytes or in [0, 1]; found {found_range}")
            return prepare_pictures(grey[None], spec)[0]
    elif values.ndim == 1 and len(values) > 0:
        return prepare_sound(fit_length(values.float(), spec.options["samples"])[None], spec)[0]
    else:
        wanted.append(("samples",))
    shapes = " or ".join(str(shape).replace("'", "") for shape in dict.fromkeys(wanted))
    raise DataError(f"{path}: an array of shape {tuple(values.shape)}; this student reads {shapes}")


def _read_picture(path: Path, height: int, width: int) -> Float[Tensor, "H W"]:
    """A grey picture in [0, 1]; what is transparent is dark."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("reading pictures", "pillow", "image") from error
    try:
        with warnings.catch_warnings():
            # A picture so large that Pillow warns of it is refused, not read.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):
                    grey = np.asarray(picture, dtype=np.float32) / 65535
                else:
                    if picture.has_transparency_data:
                        picture = picture.convert("RGBA")
                        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
                    grey = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: truncated, or not a readable picture: {error}") from error
    resized = torch.nn.functional.interpolate(torch.from_numpy(grey)[None, None], (height, width), mode="area")
    return resized[0, 0]
