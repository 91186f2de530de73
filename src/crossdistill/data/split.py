"""Splits of the rows into training, validation and test."""

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
    """A uniformly random split: `fractions` are for training and validation, the rest for the test."""
    return cut(torch.from_numpy(np.random.default_rng(seed).permutation(rows)), fractions)


def default_split(
    name: str,
    targets: Int64[Tensor, " N"],
    groups: Mapping[str, Tensor],
    seed: int,
    fractions: tuple[float, float] = (0.6, 0.2),
    kind: str = "class",
) -> tuple[dict[str, Tensor], str]:
    """A split stratified by class, or by what `kind` names, that keeps groups together; and a sentence on it.

    `fractions` of every class are for training and validation, the rest for the test, rounded to whole rows: a class of
    three rows or more is in each split, a class of two rows in training and one other split, a single row in training.
    Rows without a target count as one more class. Rows that share a group of any kind form a block, which is in one
    split. Blocks are assigned such that classes are near their fractions and every class has a block in training. With
    groups, the split depends on ids and classes only, not on the order of rows.

    Raises:
        DataError: there are too few blocks, or no assignment leaves every class in training.
    """
    shares = (*fractions, 1 - sum(fractions))
    _, classes = np.unique(targets.numpy(), return_inverse=True)
    if groups:
        block = blocks(groups)
        try:
            place = _split_blocks(block, classes, groups, shares, seed)[block]
        except DataError as error:
            raise DataError(f"dataset {name!r}: {error}") from error
    else:
        place = _split_rows(classes, shares, seed)
    splits = {split: torch.from_numpy(np.flatnonzero(place == number)) for number, split in enumerate(SPLITS)}
    percent = ", ".join(f"{split} {len(rows) / max(1, len(targets)):.0%}" for split, rows in splits.items())
    known = len(targets.unique()) > 1
    how = f"by {kind}" if known else "at random"
    kept = f"; no {' or '.join(repr(kind) for kind in groups)} is in two splits" if groups else ""
    return splits, f"rows were split {how}, by seed {seed}{kept}: {percent}"


def _split_rows(classes: NDArray[np.int64], shares: tuple[float, ...], seed: int) -> NDArray[np.int64]:
    """The number of each row's split, by class; rows left by rounding go where most rows are missing so far."""
    place = np.zeros(len(classes), dtype=np.int64)
    assigned, due = np.zeros(len(SPLITS)), np.zeros(len(SPLITS))
    order = np.argsort(classes, kind="stable")
    for number, rows in enumerate(np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)):
        exact = np.array(shares) * len(rows)
        if len(rows) > 1:
            exact[0] = min(exact[0], len(rows) - 1)
        counts = np.floor(exact + 1e-9)
        counts[0] = max(1, counts[0])
        if len(rows) >= len(SPLITS):
            counts = np.maximum(counts, 1)
        while counts.sum() > len(rows):
            counts[np.argmax(counts - exact)] -= 1
        due += exact
        while counts.sum() < len(rows):
            # A split never gets more than its fraction of this class, rounded up.
            missing = np.where(counts < exact, due - assigned - counts, -np.inf)
            counts[np.argmax(missing)] += 1
        assigned += counts
        drawn = np.random.default_rng([seed, number]).permutation(rows)
        place[drawn] = np.repeat(np.arange(len(SPLITS)), counts.astype(np.int64))
    return place


def blocks(groups: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """The block of each row, numbered from 0: rows are connected if they share a group of any kind.

    Blocks are numbered by the ids of the first kind, not by the order of rows.
    """
    kinds = [np.unique(ids.numpy(), return_inverse=True)[1] for _, ids in sorted(groups.items())]
    # Each row points to the first row of its block that is known so far.
    block, before = np.arange(len(kinds[0])), None
    while before is None or not np.array_equal(before, block):
        before = block
        for ids in kinds:
            block = _lowest(ids, block)[ids]
        block = block[block]
    return np.unique(_lowest(block, kinds[0])[block], return_inverse=True)[1].astype(np.int64)


def _lowest(ids: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lowest of the values of each id."""
    lowest = np.full(int(ids.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(lowest, ids, values)
    return lowest


def _split_blocks(
    block: NDArray[np.int64],
    classes: NDArray[np.int64],
    groups: Mapping[str, Tensor],
    shares: tuple[float, ...],
    seed: int,
) -> NDArray[np.int64]:
    """The number of each block's split: large blocks first, to the split with the largest deficit of its classes."""
    count = int(block.max(initial=-1)) + 1
    if count < len(SPLITS):
        each = ", ".join(f"{len(ids.unique())} of {kind!r}" for kind, ids in groups.items())
        raise DataError(
            f"groups connect the rows to {'one block' if count == 1 else f'{count} blocks'} ({each}), and three splits "
            "that share no group need at least three; give fewer kinds of groups, or `splits` of your own"
        )
    held = np.zeros((count, int(classes.max()) + 1))
    np.add.at(held, (block, classes), 1)
    size, total, holders = held.sum(1), held.sum(0), (held > 0).sum(0)
    # The only block of a class has to be in training.
    bound = held[:, holders == 1].sum(1) > 0
    place = np.where(bound, 0, -1)
    have = np.stack([held[bound].sum(0), *np.zeros((2, len(total)))])
    wanted = np.outer(shares, total)
    shuffled = np.random.default_rng([seed, count]).permutation(count)
    # Sizes are compared by powers of two, so the order of blocks of similar size depends on the seed.
    for number in shuffled[np.argsort(-np.floor(np.log2(size[shuffled])), kind="stable")]:
        if place[number] < 0:
            present = held[number] > 0
            rise = held[number, present] * (2 * have[:, present] + held[number, present])
            rise /= wanted[:, present] * total[present]
            place[number] = int(np.argmin(rise.sum(1)))
            have[place[number]] += held[number]
    _mend(place, held, bound)
    if len(np.unique(place)) < len(SPLITS):
        raise DataError(
            f"groups connect the rows to {count} blocks, of which {int(bound.sum())} are the only ones of a class and "
            "have to be in training: too few are left for validation and test; give fewer kinds of groups, or `splits` "
            "of your own"
        )
    return place


def _mend(place: NDArray[np.int64], held: NDArray[np.float64], bound: NDArray[np.bool_]) -> None:
    """Move single blocks until every class is in training and every split has a block, if that is possible."""
    size = held.sum(1)
    for number in range(held.shape[1]):
        holders = np.flatnonzero(held[:, number])
        if len(holders) and not (place[holders] == 0).any():
            place[holders[np.argmin(size[holders])]] = 0
    for split in (1, 2):
        if (place == split).any():
            continue
        for block in np.argsort(size, kind="stable"):
            rest = np.delete(np.arange(len(place)), block)
            left = held[rest][place[rest] == 0].sum(0) > 0
            spare = not bound[block] and (place == place[block]).sum() > 1
            if spare and (place[block] != 0 or left[held[block] > 0].all()):
                place[block] = split
                break


def paper_split(rows: int, column: int) -> dict[str, Tensor]:
    """The random 60/20/20 split in the column `group_{column}` of the released MST-Distill tables.

    Those tables are the first twenty permutations of one seeded generator. The split ignores speakers, so the same
    voice, even the same clip, may be in training and test.

    Raises:
        SettingError: the column is not in 0 to 19.
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
    """Cut a sequence of rows into the three splits; both positions are rounded down."""
    first = int(fractions[0] * len(order))
    second = int((fractions[0] + fractions[1]) * len(order))
    return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def choose_rows(available: int, wanted: int | None, seed: int) -> NDArray[np.int64]:
    """All rows, or `wanted` of them drawn by `seed`, in ascending order.

    Raises:
        SettingError: `wanted` exceeds the available rows.
    """
    if wanted is None or wanted == available:
        return np.arange(available)
    if wanted > available:
        raise SettingError(f"data.rows={wanted}: there are only {available}")
    return np.sort(np.random.default_rng([seed, 0]).permutation(available)[:wanted])


def drawn_by_class(
    targets: Int64[Tensor, " N"], rows: Int64[Tensor, " R"], count: int, seed: int
) -> Int64[Tensor, " count"]:
    """So many of these rows, the same part of every class up to one row, drawn by `seed`; in ascending order."""
    share, due, drawn = count / max(1, len(rows)), 0.0, []
    for number in targets[rows].unique().tolist():
        of_class = rows[targets[rows] == number].sort().values.numpy()
        due += share * len(of_class)
        taken = min(len(of_class), int(due + 0.5))
        due -= taken
        drawn.append(np.random.default_rng([seed, number]).permutation(of_class)[:taken])
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


def split_sources(names: Sequence[str], seed: int, fractions: tuple[float, float], what: str) -> dict[str, list[str]]:
    """Assign whole sources (voices, noise clips) to the splits, so that no source is in two splits.

    Every split gets at least one source. `what` names the sources in the error.

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


def check_splits(splits: Mapping[str, Tensor], rows: int, name: str, *, tested: bool = True) -> None:
    """Check that train, validation and test exist, are not empty, are in range and are disjoint.

    With `tested` False the test may be empty: without targets no test row is read.

    Raises:
        DataError: names the split and the fault.
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
        if len(index) == 0 and split == "test" and not tested:
            continue
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
