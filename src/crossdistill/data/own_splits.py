"""Splits of a user's rows: by a column, by ids, by fractions, or as folds; by class, and with groups kept together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.split import SPLITS, blocks
from crossdistill.data.table_file import Table
from crossdistill.errors import DataError, nearest

SPLIT_NAMES = {
    "train": ("train", "training", "tr", "fit"),
    "validation": ("validation", "val", "valid", "dev", "develop", "development"),
    "test": ("test", "testing", "te", "eval", "evaluation", "holdout"),
}
SHARE = 5
"""Without rows for validation, one in so many training rows is taken for it."""


def split_called(value: Any) -> str | None:
    """The split that a cell or a folder names; None if it names none."""
    text = str(value).strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if text in names), None)


def fold_of(targets: Int64[Tensor, " N"], groups: Mapping[str, Tensor], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: classes in equal shares, and rows that share a group in one fold.

    Raises:
        DataError: there are fewer groups, or rows, than folds.
    """
    _, classes = np.unique(targets.numpy(), return_inverse=True)
    block = blocks(groups) if groups else np.arange(len(targets))
    count = int(block.max(initial=-1)) + 1
    if count < folds:
        what = (
            f"the groups {', '.join(map(repr, groups))} connect the rows to {count} blocks"
            if groups
            else f"{count} rows"
        )
        raise DataError(f"{what}, too few for {folds} folds: set data.folds to at most {count}")
    if not groups:
        fold = np.zeros(len(targets), dtype=np.int64)
        order = np.random.default_rng([seed, folds]).permutation(len(targets))
        # Dealt in turn over all classes, so that folds differ by one row at most.
        dealt = order[np.argsort(classes[order], kind="stable")]
        fold[dealt] = np.arange(len(targets)) % folds
        return fold
    held = np.zeros((count, int(classes.max()) + 1))
    np.add.at(held, (block, classes), 1)
    total, size = held.sum(0), held.sum(1)
    have = np.zeros((folds, len(total)))
    place = np.zeros(count, dtype=np.int64)
    shuffled = np.random.default_rng([seed, count, folds]).permutation(count)
    for number in shuffled[np.argsort(-size[shuffled], kind="stable")]:
        rise = (held[number] * (2 * have + held[number]) / total**2).sum(1)
        place[number] = int(np.argmin(rise + 1e-9 * have.sum(1)))
        have[place[number]] += held[number]
    return place[block]


def of_fold(
    targets: Int64[Tensor, " N"], groups: Mapping[str, Tensor], folds: int, fold: int, seed: int, kind: str = "class"
) -> tuple[dict[str, Tensor], str]:
    """The splits of one of several folds: it is the test, the next one validates, the others train.

    Raises:
        DataError: there are fewer groups, or rows, than folds.
    """
    each = fold_of(targets, groups, folds, seed)
    place = np.where(each == fold, 2, np.where(each == (fold + 1) % folds, 1, 0))
    kept = f"; no {' or '.join(map(repr, groups))} is in two folds" if groups else ""
    return _of_places(place), f"fold {fold} (0 to {folds - 1}) is the test, drawn by {kind} with seed {seed}{kept}"


def of_column(
    table: Table,
    column: str,
    targets: Int64[Tensor, " N"],
    groups: Mapping[str, Tensor],
    seed: int,
    kind: str = "class",
    *,
    tested: bool = True,
    instead: str = "leave data.split out to draw splits by class",
) -> tuple[dict[str, Tensor], str]:
    """The splits that a column names. Without rows for validation, a fifth of those that train is taken for it.

    With `tested` False no row has to be for the test. `instead` says in faults how splits are drawn without a column.

    Raises:
        DataError: a cell names no split, or there is no row for training or test; names the file.
    """
    cells = [None if cell is None else str(cell) for cell in table.columns[column]]
    names = {cell: split_called(cell) for cell in dict.fromkeys(cells)}
    unknown = [cell for cell, split in names.items() if split is None]
    if unknown:
        line = table.lines[cells.index(unknown[0])]
        known = [name for all_names in SPLIT_NAMES.values() for name in all_names]
        shown = "nothing" if unknown[0] is None else repr(unknown[0])
        raise DataError(
            f"{table.path}: column {column!r} holds {shown} in line {line}, which names no split (case does not "
            f"matter); {nearest(str(unknown[0]), known)}"
        )
    place = np.array([SPLITS.index(str(names[cell])) for cell in cells])
    for split in ("train", "test") if tested else ("train",):
        if not (place == SPLITS.index(split)).any():
            raise DataError(
                f"{table.path}: column {column!r} has no row for {split}; it holds "
                f"{', '.join(sorted(map(str, names)))}; wanted also one of {', '.join(SPLIT_NAMES[split])} (case does "
                f"not matter), or {instead}"
            )
    how = f"splits are those of column {column!r}"
    if not (place == 1).any():
        rows = torch.from_numpy(np.flatnonzero(place == 0))
        own = {kind: ids[rows] for kind, ids in groups.items()}
        place[rows.numpy()[fold_of(targets[rows], own, SHARE, seed) == 0]] = 1
        how += (
            f"; it has none for validation, which gets a fifth of the training rows, drawn by {kind} with seed {seed}"
        )
    return _of_places(place), how


def of_ids(ids: Sequence[Any], wanted: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The splits that lists of sample ids name; rows in no list are left out.

    Raises:
        DataError: an id is not among the rows; names the nearest.
    """
    number = {str(value): row for row, value in enumerate(ids)}
    splits = {}
    for split, names in wanted.items():
        missing = [name for name in names if name not in number]
        if missing:
            raise DataError(
                f"data.splits.{split}: {len(missing)} ids are in no row, first {missing[0]!r}; "
                f"{nearest(missing[0], list(number)[:50])}"
            )
        splits[split] = torch.tensor([number[name] for name in names], dtype=torch.int64)
    return splits


def few_rows(strata: Sequence[Any], wanted: int, seed: int) -> list[int]:
    """At most so many rows, in ascending order: the same share of each stratum, and one row at least of each."""
    order = np.random.default_rng([seed, 1]).permutation(len(strata)).tolist()
    sizes = Counter(strata)
    turns: Counter[Any] = Counter()
    ranked: list[tuple[float, int, int]] = []
    for row in order:
        share = turns[strata[row]] / sizes[strata[row]]
        turns[strata[row]] += 1
        ranked.append((share, len(ranked), row))
    return sorted(row for _, _, row in sorted(ranked)[:wanted])


def _of_places(place: NDArray[np.int64]) -> dict[str, Tensor]:
    return {split: torch.from_numpy(np.flatnonzero(place == number)) for number, split in enumerate(SPLITS)}
