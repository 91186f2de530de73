"""Reads MNIST's IDX files, plain or gzipped, and checks every length."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError

UNSIGNED_BYTES = 0x08
MOST_DIMENSIONS = 8


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file with this number of dimensions.

    Raises:
        DataError: the file is missing, truncated, too long, or no such IDX file; names it.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: truncated: {len(content)} bytes are too few for an IDX header of {header}")
    zero, kind, number = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != UNSIGNED_BYTES or number != dimensions:
        raise DataError(
            f"{path}: its first four bytes are {content[:4].hex()}; wanted 000008{dimensions:02x}, "
            f"an IDX file of unsigned bytes in {dimensions} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    wanted = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != wanted:
        word = "truncated" if len(content) - header < wanted else "too long"
        raise DataError(f"{path}: {word}: shape {shape} needs {wanted:,} bytes, found {len(content) - header:,}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
