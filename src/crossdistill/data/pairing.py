"""Pairs matched by class: which example of a second source goes with each row of the first."""

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import DataError


def pair_by_class(
    classes: Int64[Tensor, " N"], pool: NDArray[np.int64], rng: np.random.Generator, what: str
) -> Int64[Tensor, " N"]:
    """For every row an example of the pool (given by its classes) that has the row's class.

    Each example is used once before any is used again. `what` names the pool in the error.

    Raises:
        DataError: the pool has no example of a class that rows have.
    """
    chosen = torch.full_like(classes, -1)
    for number in classes.unique().tolist():
        rows = (classes == number).nonzero().flatten()
        own = np.flatnonzero(pool == number)
        if len(own) == 0:
            raise DataError(f"{what}: none of class {number}, which {len(rows)} rows need")
        rounds = -(-len(rows) // len(own))
        dealt = np.concatenate([rng.permutation(own) for _ in range(rounds)])[: len(rows)]
        chosen[rows] = torch.from_numpy(dealt.astype(np.int64))
    return chosen
