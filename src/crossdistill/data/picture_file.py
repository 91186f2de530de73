"""Decodes picture files by Pillow: 8 and 16 bits, palettes, transparency, CMYK, rotation by EXIF."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError, MissingExtraError

PICTURE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are opened, whatever the suffix: Pillow would open others by running other programs (EPS)."""


def decode_picture(path: Path, content: bytes | None = None) -> NDArray[Any]:
    """A picture (1 or 3, height, width): bytes, or, of 16-bit grey, float32 of 0 to 255. Of several, the first.

    Transparent pixels become black, as `decode` reads them for a student.

    Raises:
        DataError: not a readable picture, or truncated; names it.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("reading pictures", "pillow", "image") from error
    content = path.read_bytes() if content is None else content
    check_depth(path, content[:26])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A picture that is so large that Pillow warns is rejected.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                return _pixels(file)
    except Exception as error:  # decoders may raise anything for a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        cause = f"its content is none of {', '.join(FORMATS)}" if unknown else " ".join(str(error).split())[:300]
        raise DataError(f"{path}: truncated, or not a readable picture: {cause}") from error


def _pixels(file: Any) -> NDArray[Any]:
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith("I"):
        whole = np.asarray(picture).astype(np.float32)
        clear = picture.info.get("transparency")
        whole = np.where(whole == clear, np.float32(0), whole) if isinstance(clear, int) else whole
        if whole.min() < 0 or whole.max() > 65535:
            raise ValueError(f"holds {whole.min():g} to {whole.max():g}; grey pictures of 8 or 16 bits are read")
        return (whole / np.float32(257))[None]
    if picture.mode == "F":
        raise ValueError("holds floating-point numbers; save it with 8 or 16 bits, or as a .npy")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def check_depth(path: Path, head: bytes) -> None:
    """Reject PNG files with 16 bits and several channels, which Pillow reduces to eight bits without a warning.

    Raises:
        DataError: it is one; `head` are its first 26 bytes.
    """
    if len(head) == 26 and head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] != 0:
        raise DataError(
            f"{path}: a colour picture, or one with transparency, of 16 bits, of which only eight can be read; save it "
            "as 16-bit grey or with eight bits, or as a .npy"
        )
