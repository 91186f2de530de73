"""Reads `.npy` arrays without pickle; errors name the file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError
from crossdistill.runtime.files import file_fault

MAGIC = b"\x93NUMPY"


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The numeric array in a `.npy` file; with `mapped`, rows are read when they are used.

    Raises:
        DataError: the file is missing, truncated, pickled, or not a `.npy` file; names it.
    """
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path}: not a .npy file")
        # Mapped first, so that no memory is allocated for a header that promises more than the file holds.
        with np.errstate(over="ignore"):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, SyntaxError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: truncated, or not an array of numbers: {cause}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {str(array.dtype)[:80]}; wanted numbers")
    return array if mapped else np.array(array)


def native(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that PyTorch accepts: native byte order, C order, writable memory."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
