"""Pairs rows of two sources by class."""

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import DataError


def pair_by_class(
    classes: Int64[Tensor, " N"], pool: NDArray[np.int64], rng: np.random.Generator, what: str
) -> Int64[Tensor, " N"]:
    """For each row, the number of an example with the same class in `pool` (the classes of its examples).

    All examples of a class are used once before one is used again. `what` names the pool in the error.

    Raises:
        DataError: the pool has no example of a class that rows have.
    """
    chosen = torch.full_like(classes, -1)
    for number in classes.unique().tolist():
        rows = (classes == number).nonzero().flatten()
        candidates = np.flatnonzero(pool == number)
        if len(candidates) == 0:
            raise DataError(f"{what}: none of class {number}, which {len(rows)} rows need")
        rounds = -(-len(rows) // len(candidates))
        drawn = np.concatenate([rng.permutation(candidates) for _ in range(rounds)])[: len(rows)]
        chosen[rows] = torch.from_numpy(drawn.astype(np.int64))
    return chosen
