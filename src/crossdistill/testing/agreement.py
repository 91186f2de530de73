"""Comparison of two sets of tensors that two ways of computing a step give."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Absolute and relative tolerance between two ways of computing a step."""


def same_tensors(lefts: Mapping[Any, Tensor], rights: Mapping[Any, Tensor], *, what: str, exact: bool = False) -> None:
    """Check that two sets of tensors are equal; `what` and the name of a tensor are a sentence on their difference.

    Raises:
        AssertionError: the names differ, or a tensor does; says by how much.
    """
    assert set(lefts) == set(rights), f"{what} the names: {sorted(map(str, set(lefts) ^ set(rights)))}"
    for name, left in lefts.items():
        right = rights[name]
        if exact:
            same = torch.equal(left, right)
        else:
            same = left.shape == right.shape and torch.allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE)
        if not same:
            apart = (left - right).abs().max().item() if left.shape == right.shape else float("nan")
            raise AssertionError(f"{what} {name!r} by {apart:.3g} at most")
