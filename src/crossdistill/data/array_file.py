"""Reading `.npy` arrays without pickle, with errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError

MAGIC = b"\x93NUMPY"


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array of numbers in a `.npy` file; `mapped` reads only the rows that are used.

    Raises:
        DataError: the file is missing, truncated, pickled, or not a `.npy` file; names it.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise DataError(f"{path}: not a .npy file")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: truncated, or not an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {array.dtype}; wanted numbers")
    return array
