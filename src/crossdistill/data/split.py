"""Splits: which rows train, validate and test."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import DataError, SettingError

SPLITS = ("train", "validation", "test")

PAPER_SEED = 19980427
PAPER_COLUMNS = 20


def random_split(rows: int, seed: int, fractions: tuple[float, float] = (0.6, 0.2)) -> dict[str, Tensor]:
    """Rows drawn without regard to anything: `fractions` train and validate, what is left tests."""
    return cut(torch.from_numpy(np.random.default_rng(seed).permutation(rows)), fractions)


def paper_split(rows: int, column: int) -> dict[str, Tensor]:
    """The random 60/20/20 split that the released MST-Distill tables hold in their column `group_{column}`.

    Those tables are the first twenty permutations of one seeded generator. Rows are drawn without regard to who
    speaks, so the same voice, even the same clip, may train and test.

    Raises:
        SettingError: there are only columns 0 to 19.
    """
    if not 0 <= column < PAPER_COLUMNS:
        raise SettingError(
            f'split "sample" has seeds 0 to {PAPER_COLUMNS - 1} (the columns of the paper), got {column}'
        )
    generator = np.random.RandomState(PAPER_SEED)
    for _ in range(column):
        generator.permutation(rows)
    return cut(torch.from_numpy(generator.permutation(rows).astype(np.int64)), (0.6, 0.2))


def cut(order: Int64[Tensor, " N"], fractions: tuple[float, float]) -> dict[str, Tensor]:
    """Cut an order of rows in three, rounding both cuts down."""
    first = int(fractions[0] * len(order))
    second = int((fractions[0] + fractions[1]) * len(order))
    return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def choose_rows(available: int, wanted: int | None, seed: int) -> NDArray[np.int64]:
    """All rows, or so many of them drawn by `seed`, in their own order.

    Raises:
        SettingError: more are wanted than there are.
    """
    if wanted is None or wanted == available:
        return np.arange(available)
    if wanted > available:
        raise SettingError(f"data.rows={wanted}: there are only {available}")
    return np.sort(np.random.default_rng([seed, 0]).permutation(available)[:wanted])


def split_sources(names: Sequence[str], seed: int, fractions: tuple[float, float], what: str) -> dict[str, list[str]]:
    """Deal whole sources (voices, noise clips) to the splits, so that no two splits share one.

    Every split gets at least one. `what` names the sources in the error.

    Raises:
        DataError: there are fewer than three sources.
    """
    unique = sorted(set(names))
    if len(unique) < len(SPLITS):
        raise DataError(
            f"{what}: three splits that share none need at least three, "
            f"found {len(unique)}: {', '.join(unique) or '(none)'}"
        )
    order = [unique[i] for i in np.random.default_rng([seed, len(unique)]).permutation(len(unique))]
    test = max(1, round((1 - fractions[0] - fractions[1]) * len(order)))
    validation = max(1, round(fractions[1] * len(order)))
    train = max(1, len(order) - test - validation)
    while train + validation + test > len(order):
        if test >= validation:
            test -= 1
        else:
            validation -= 1
    return {
        "train": order[:train],
        "validation": order[train : train + validation],
        "test": order[train + validation :],
    }


def check_splits(splits: Mapping[str, Tensor], rows: int, name: str) -> None:
    """Check that train, validation and test are there, hold rows, are in range and share none.

    Raises:
        DataError: says which split and why.
    """
    missing = [split for split in SPLITS if split not in splits]
    unknown = sorted(set(splits) - set(SPLITS))
    if missing or unknown:
        raise DataError(f"dataset {name!r}: wanted the splits {', '.join(SPLITS)}; found {', '.join(splits) or 'none'}")
    seen = torch.full((rows,), -1, dtype=torch.int64)
    for number, split in enumerate(SPLITS):
        index = splits[split]
        if index.ndim != 1 or index.dtype != torch.int64:
            raise DataError(
                f"dataset {name!r}: split {split!r} is {index.dtype} {tuple(index.shape)}; wanted int64 row numbers"
            )
        if len(index) == 0:
            raise DataError(f"dataset {name!r}: split {split!r} is empty; {rows} rows are too few for these splits")
        if int(index.min()) < 0 or int(index.max()) >= rows:
            raise DataError(
                f"dataset {name!r}: split {split!r} names rows {int(index.min())} to {int(index.max())}, "
                f"but rows go from 0 to {rows - 1}"
            )
        shared = index[seen[index] >= 0]
        if len(shared):
            other = SPLITS[int(seen[shared[0]])]
            raise DataError(
                f"dataset {name!r}: splits {other!r} and {split!r} share {len(shared)} rows, first {int(shared[0])}"
            )
        if len(index.unique()) != len(index):
            raise DataError(f"dataset {name!r}: split {split!r} names some rows twice")
        seen[index] = number
