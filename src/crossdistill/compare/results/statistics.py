"""Paired comparison of runs: a hierarchical bootstrap over seeds and test samples, and Holm's correction.

All methods are compared on the same draws, so every comparison is paired in both: a draw takes seeds with replacement,
and test samples with replacement, for all methods and seeds alike. A sample that several seeds test (a split that the
seed does not draw) is there in all of them or in none; samples that one seed alone tests enter with that seed.

A bootstrap of S seeds has only (S - 1) / S of their variance: with three seeds that is a third too little, and a test
that calls noise a gain. The seeds' part of each draw is therefore stretched by sqrt(S / (S - 1)). One seed says
nothing of the spread between seeds; the interval is then of the test samples alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

DRAWS = 10_000
LEVEL = 0.95
AT_ONCE = 500
"""Draws that are made together: bounds memory."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Right answers and questions, counted for each seed and test sample.

    A sample is what is drawn as one: all test rows that show the student the very same input.
    """

    right: Float[ndarray, "S M U"]
    """Right answers of each of the M methods."""
    rows: Float[ndarray, "S U"]
    """Test rows of each sample; 0 where a seed does not test it."""

    def means(self) -> Float[ndarray, "S M"]:
        """Accuracy of each method on each seed."""
        found: ndarray = self.right.sum(2) / self.rows.sum(1)[:, None]
        return found


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much one method is better than another (accuracy), with its interval and how likely chance gives more."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(tally: Tally, draws: int = DRAWS, seed: int = 0, *, at_once: int = AT_ONCE) -> Float[ndarray, "D M"]:
    """Mean accuracy over seeds of every method in each draw; differences of columns are paired."""
    source = np.random.default_rng(seed)
    seeds, methods, samples = tally.right.shape
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    flat = tally.right.reshape(seeds * methods, samples)
    found = np.empty((draws, methods))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        times = _counts(source, count, samples)
        asked = times @ tally.rows.T
        # All of a tiny seed's samples may be missing in a draw; the whole seed stands in for them.
        means = (times @ flat.T).reshape(count, seeds, methods) / np.maximum(asked, 1)[:, :, None]
        means = np.where(asked[:, :, None] > 0, means, tally.means()[None])
        middle = means.mean(1)
        chosen = _counts(source, count, seeds) / seeds
        drawn = (chosen[:, :, None] * means).sum(1)
        found[start : start + count] = middle + stretch * (drawn - middle)
    return found


def _counts(source: np.random.Generator, draws: int, size: int) -> Float[ndarray, "D N"]:
    """How often each of `size` things is taken in each draw of `size` with replacement."""
    places = source.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def difference(value: float, drawn: Float[ndarray, " D"], level: float = LEVEL) -> Difference:
    """Percentile interval and two-sided p of a difference from its draws."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Of draws that are exactly zero half lie on each side; one more on each side keeps p above zero.
    ties = float((drawn == 0).sum()) / 2
    below, above = float((drawn < 0).sum()) + ties, float((drawn > 0).sum()) + ties
    p = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    return Difference(value, float(low), float(high), p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm, 1979): p values that hold for all comparisons of a family together."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        found[i] = largest
    return found


def tally(
    answers: Sequence[Sequence[tuple[Int[ndarray, " N"], ndarray]]], samples: Sequence[Int[ndarray, " N"]]
) -> Tally:
    """Count answers: for each seed and method its row ids with what is right; for each seed the samples of its rows.

    `samples` number the test samples by the rows of the first method of the seed; every method has to answer the same
    rows.
    """
    numbers, inverse = np.unique(np.concatenate([np.asarray(one) for one in samples]), return_inverse=True)
    parts = list(_split(inverse, [len(one) for one in samples]))
    rows = np.stack([np.bincount(part, minlength=len(numbers)) for part in parts]).astype(np.float64)
    right = np.zeros((len(answers), len(answers[0]), len(numbers)))
    for seed, methods in enumerate(answers):
        order = np.argsort(methods[0][0], kind="stable")
        for number, (ids, correct) in enumerate(methods):
            own = np.argsort(ids, kind="stable")
            if not np.array_equal(ids[own], methods[0][0][order]):
                raise ValueError("methods that are compared answer different test rows")
            weights = correct[own].astype(np.float64)
            right[seed, number] = np.bincount(parts[seed][order], weights=weights, minlength=len(numbers))
    return Tally(right, rows)


def _split(values: ndarray, lengths: Sequence[int]) -> Iterator[ndarray]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length
