"""Paired comparison of runs: a hierarchical bootstrap over seeds and test samples, and Holm's correction.

All methods are compared on the same draws, so every comparison is paired in seeds and samples: a draw takes seeds
with replacement, and test samples with replacement, for all methods and seeds alike. A sample that several seeds test
(the split does not depend on the seed) is drawn in all of them or in none; a sample of one seed enters with that seed.

A bootstrap over S seeds has only (S - 1) / S of their variance: with three seeds a third is missing, and the test would
report noise as a gain. The deviation of each draw due to seeds is therefore stretched by sqrt(S / (S - 1)). With one
seed the spread between seeds is unknown, and the interval covers the test samples only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

DRAWS = 10_000
LEVEL = 0.95
AT_ONCE = 500
"""Number of draws computed together, which bounds memory."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of right predictions and of test rows, for each of S seeds and U test samples.

    A sample is the unit of the bootstrap: all test rows with the same student input.
    """

    right: Float[ndarray, "S M U"]
    """Number of right predictions of each of the M methods."""
    rows: Float[ndarray, "S U"]
    """Number of test rows of each sample; 0 where a seed does not test the sample."""

    def means(self) -> Float[ndarray, "S M"]:
        """Accuracy of each method on each seed."""
        accuracies: ndarray = self.right.sum(2) / self.rows.sum(1)[:, None]
        return accuracies


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference in accuracy of two methods, with the bounds of its confidence interval and its two-sided p."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(tally: Tally, draws: int = DRAWS, seed: int = 0, *, at_once: int = AT_ONCE) -> Float[ndarray, "D M"]:
    """Mean accuracy over seeds of every method (M) in each draw (D); differences of columns are paired."""
    source = np.random.default_rng(seed)
    seeds, methods, samples = tally.right.shape
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    flat = tally.right.reshape(seeds * methods, samples)
    accuracies = np.empty((draws, methods))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        times = _counts(source, count, samples)
        drawn_rows = times @ tally.rows.T
        # A draw may miss all samples of a seed with few rows; the mean over the whole seed replaces them.
        means = (times @ flat.T).reshape(count, seeds, methods) / np.maximum(drawn_rows, 1)[:, :, None]
        means = np.where(drawn_rows[:, :, None] > 0, means, tally.means()[None])
        middle = means.mean(1)
        chosen = _counts(source, count, seeds) / seeds
        drawn = (chosen[:, :, None] * means).sum(1)
        accuracies[start : start + count] = middle + stretch * (drawn - middle)
    return accuracies


def _counts(source: np.random.Generator, draws: int, size: int) -> Float[ndarray, "D N"]:
    """The count of each of `size` items in each draw of `size` items with replacement."""
    places = source.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def difference(value: float, drawn: Float[ndarray, " D"], level: float = LEVEL) -> Difference:
    """Percentile interval and two-sided p of a difference from its draws."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Half of the draws that are exactly zero count on each side; one more on each side keeps p above zero.
    ties = float((drawn == 0).sum()) / 2
    below, above = float((drawn < 0).sum()) + ties, float((drawn > 0).sum()) + ties
    p = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    return Difference(value, float(low), float(high), p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm, 1979): p values that hold for all comparisons of a family together."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def tally(
    answers: Sequence[Sequence[tuple[Int[ndarray, " N"], ndarray]]], samples: Sequence[Int[ndarray, " N"]]
) -> Tally:
    """Count the right predictions of each seed, method and test sample.

    `answers` holds for each seed and method the row ids and whether each prediction is right. `samples` holds for each
    seed the sample numbers of its rows, in the order of the first method; all methods must predict the same rows.

    Raises:
        ValueError: the methods of a seed predict different rows.
    """
    numbers, inverse = np.unique(
        np.concatenate([np.asarray(seed_samples) for seed_samples in samples]), return_inverse=True
    )
    parts = list(_split(inverse, [len(seed_samples) for seed_samples in samples]))
    rows = np.stack([np.bincount(part, minlength=len(numbers)) for part in parts]).astype(np.float64)
    right = np.zeros((len(answers), len(answers[0]), len(numbers)))
    for seed, methods in enumerate(answers):
        order = np.argsort(methods[0][0], kind="stable")
        for number, (ids, correct) in enumerate(methods):
            method_order = np.argsort(ids, kind="stable")
            if not np.array_equal(ids[method_order], methods[0][0][order]):
                raise ValueError(f"methods 0 and {number} predict different test rows on seed {seed}")
            weights = correct[method_order].astype(np.float64)
            right[seed, number] = np.bincount(parts[seed][order], weights=weights, minlength=len(numbers))
    return Tally(right, rows)


def _split(values: ndarray, lengths: Sequence[int]) -> Iterator[ndarray]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length
