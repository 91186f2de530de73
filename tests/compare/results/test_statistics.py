"""The bootstrap against slow loops and scipy, Holm against its definition, and how often noise is significant."""

import numpy as np
import pytest
from facts import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from scipy import stats

from crossdistill.compare.results.statistics import Tally, bootstrap, difference, holm, tally


def noise(source: np.random.Generator, seeds: int, samples: int, spread: float, gain: float = 0.0) -> Tally:
    """Two methods that differ by `gain` in skill, on runs that differ by `spread` and samples that differ too."""
    skill = np.stack([np.full(seeds, 0.5), np.full(seeds, 0.5 + gain)], 1) + source.normal(0, spread, (seeds, 2))
    hard = source.normal(0, 1.2, samples)
    right = skill[:, :, None] + hard + source.normal(0, 1, (seeds, 2, samples)) > 0
    return Tally(right.astype(np.float64), np.ones((seeds, samples)))


def test_every_draw_is_the_slow_loop_over_its_seeds_and_samples() -> None:
    source = np.random.default_rng(3)
    counted = noise(source, 3, 40, 0.3)
    draws = 7
    accuracies = bootstrap(counted, draws, seed=5)

    again = np.random.default_rng(5)
    rows = again.integers(40, size=(draws, 40))
    chosen = again.integers(3, size=(draws, 3))
    for draw in range(draws):
        means = np.array([[counted.right[s, m, rows[draw]].mean() for m in range(2)] for s in range(3)])
        middle = means.mean(0)
        drawn = np.mean([means[s] for s in chosen[draw]], axis=0)
        np.testing.assert_allclose(accuracies[draw], middle + np.sqrt(3 / 2) * (drawn - middle), atol=1e-12)


def test_many_draws_are_made_in_blocks_of_bounded_size() -> None:
    accuracies = bootstrap(noise(np.random.default_rng(0), 2, 30, 0.1), 10, at_once=4)
    assert accuracies.shape == (10, 2)
    assert np.isfinite(accuracies).all()
    assert len(np.unique(accuracies[:, 0])) > 5


def test_samples_that_are_several_rows_weigh_as_many_rows() -> None:
    """Three rows of one picture and one of another: a draw of the first picture alone is the mean of its three rows."""
    counted = Tally(np.array([[[3.0, 0.0]]]), np.array([[3.0, 1.0]]))
    assert counted.means()[0, 0] == 0.75
    assert set(np.round(bootstrap(counted, 200)[:, 0], 6)) == {0.0, 0.75, 1.0}


def test_samples_that_one_seed_alone_tests_leave_the_other_seeds_alone() -> None:
    right = np.array([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    rows = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    accuracies = bootstrap(Tally(right, rows), 500)
    assert np.isfinite(accuracies).all()
    assert accuracies.min() >= 0.5 - np.sqrt(2) * 0.5 - 1e-9


def test_one_seed_agrees_with_scipy() -> None:
    counted = noise(np.random.default_rng(1), 1, 400, 0.0, 0.15)
    by_row = counted.right[0, 1] - counted.right[0, 0]
    drawn = bootstrap(counted, 8_000)
    gain = difference(float(by_row.mean()), drawn[:, 1] - drawn[:, 0])
    theirs = stats.bootstrap((by_row,), np.mean, n_resamples=8_000, method="percentile", rng=np.random.default_rng(2))
    assert gain.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert gain.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)
    # Normal theory is good enough at 400 rows.
    assert gain.p == pytest.approx(stats.ttest_1samp(by_row, 0).pvalue, rel=0.2, abs=5e-3)


def test_seeds_alone_have_the_standard_error_of_a_t_test() -> None:
    """Without noise in the samples, the spread of the draws is that of a mean of S values, not (S - 1) / S of it."""
    values = np.array([0.1, 0.3, 0.2, 0.6])
    right = np.repeat((values * 10)[:, None, None], 2, 2) / 2
    drawn = bootstrap(Tally(right, np.full((4, 2), 5.0)), 20_000)
    assert drawn[:, 0].std() == pytest.approx(stats.sem(values), rel=0.02)


def test_equal_methods_are_not_distinguishable() -> None:
    gain = difference(0.0, np.zeros(1000))
    assert (gain.low, gain.high, gain.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("side", [1, -1])
def test_a_clear_difference_has_the_smallest_p(side: int) -> None:
    gain = difference(0.2 * side, side * np.linspace(0.1, 0.3, 999))
    assert gain.p == pytest.approx(2 / 1000)
    assert gain.low < gain.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_holm_is_its_definition(p: list[float]) -> None:
    ordered = sorted(p)
    expected = [max(min(1.0, (len(p) - j) * ordered[j]) for j in range(i + 1)) for i in range(len(p))]
    assert sorted(holm(p)) == pytest.approx(expected)
    for level in (0.01, 0.05, 0.5):
        # Step down: reject from the smallest on, until the first that is too large.
        rejected, rest = set(), sorted(range(len(p)), key=lambda i: p[i])
        while rest and p[rest[0]] * len(rest) <= level:
            rejected.add(rest.pop(0))
        assert rejected == {i for i, value in enumerate(holm(p)) if value <= level}


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.15])
def test_noise_is_rarely_significant(spread: float) -> None:
    """Of two equal methods, at most about one in twenty comparisons on three seeds is significant."""
    source = np.random.default_rng(7)
    significant = 0
    for trial in range(200):
        drawn = bootstrap(noise(source, 3, 150, spread), 200, seed=trial)
        significant += difference(0.0, drawn[:, 1] - drawn[:, 0]).p < 0.05
    assert significant / 200 <= 0.08


def test_a_real_gain_is_significant() -> None:
    source = np.random.default_rng(8)
    significant = 0
    for trial in range(30):
        drawn = bootstrap(noise(source, 3, 600, 0.05, gain=0.4), 500, seed=trial)
        significant += difference(0.1, drawn[:, 1] - drawn[:, 0]).p < 0.05
    assert significant >= 27


def test_predictions_are_counted_by_sample_in_any_order() -> None:
    ids = np.array([4, 9, 2, 7])
    samples = np.array([50, 60, 50, 70])

    def answers(right: list[bool], order: list[int]) -> tuple[ndarray, ndarray]:
        return ids[order], np.array(right)[order]

    counted = tally(
        [[answers([True, False, True, True], [0, 1, 2, 3]), answers([False, True, False, True], [3, 1, 0, 2])]],
        [samples],
    )
    assert (counted.rows.tolist(), counted.right.tolist()) == ([[2, 1, 1]], [[[2, 0, 1], [0, 1, 1]]])


def test_methods_that_predict_different_rows_are_refused() -> None:
    first = (np.array([1, 2]), np.array([True, True]))
    other = (np.array([1, 3]), np.array([True, True]))
    with raises(ValueError, "rows"):
        tally([[first, other]], [np.array([5, 6])])
