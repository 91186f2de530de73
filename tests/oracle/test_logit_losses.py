"""Losses between predictions, each against a slow re-derivation: Python loops in float64, written from the equation."""

import math
from itertools import combinations

import pytest
import torch
from derivations import assert_equal, draw, gradient_by_differences, probabilities, slow_kl
from scipy.stats import kendalltau

from crossdistill import losses
from crossdistill.batch import MISSING_TARGET

SHAPES = [(1, 3), (5, 4), (4, 11)]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 4, 5)])
def test_standardised(shape: tuple[int, ...]) -> None:
    logits = draw(*shape)
    rows = logits.movedim(1, -1).reshape(-1, shape[1])
    wanted = []
    for row in rows.tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        wanted.append([(value - mean) / (1e-7 + deviation) for value in row])
    assert_equal(
        losses.standardised(logits).movedim(1, -1).reshape(-1, shape[1]), torch.tensor(wanted, dtype=torch.float64)
    )


def test_standardised_logits_know_neither_scale_nor_shift() -> None:
    logits = draw(4, 5)
    torch.testing.assert_close(losses.standardised(logits), losses.standardised(logits * 3 + 7), rtol=1e-6, atol=1e-6)


def _products(rows: list[list[float]]) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(one, two, strict=True)) for two in rows] for one in rows]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_correlations(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = draw(*shape), draw(*shape)
    soft = [[probabilities(row, temperature) for row in side.tolist()] for side in (student, teacher)]
    factors = [torch.rand(size, dtype=torch.float64) for size in shape]
    for loss, sides, weights in (
        (losses.row_correlation, soft, factors[0]),
        (losses.class_correlation, [[list(column) for column in zip(*side, strict=True)] for side in soft], factors[1]),
    ):
        mine, theirs = (_products(side) for side in sides)
        size = len(mine)
        squares = [[(theirs[i][j] - mine[i][j]) ** 2 for j in range(size)] for i in range(size)]
        total = sum(map(sum, squares))
        assert_equal(loss(student, teacher, temperature), total / size)
        assert_equal(loss(student, teacher, temperature, "mean"), total / size**2)
        weighted = sum(squares[i][j] * float(weights[j]) for i in range(size) for j in range(size))
        assert_equal(loss(student, teacher, temperature, "published", weights), weighted / size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("epsilon", "temperature"), [(1.0, 1.0), (1.1, 1.0), (1.5, 4.0)])
def test_ofa(shape: tuple[int, int], epsilon: float, temperature: float) -> None:
    student, teacher, targets = draw(*shape), draw(*shape), torch.randint(0, shape[1], shape[:1])
    targets[-1] = MISSING_TARGET
    wanted = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        mine, theirs = probabilities(s, temperature), probabilities(t, temperature)
        one_hot = [float(c == y) for c in range(shape[1])]
        terms = [((p + o) ** epsilon - o) * math.log(q) for p, o, q in zip(theirs, one_hot, mine, strict=True)]
        wanted.append(-sum(terms))
    assert_equal(losses.ofa(student, teacher, targets, epsilon, temperature), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd(shape: tuple[int, int], temperature: float) -> None:
    student, teacher, targets = draw(*shape), draw(*shape), torch.randint(0, shape[1], shape[:1])
    target, others = [], []
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        mine, theirs = probabilities(s, temperature), probabilities(t, temperature)
        pairs = [(theirs[y], mine[y]), (1 - theirs[y], 1 - mine[y])]
        target.append(temperature**2 * sum(p * math.log(p / q) for p, q in pairs))
        rest = [[value for c, value in enumerate(side) if c != y] for side in (s, t)]
        others.append(slow_kl(rest[0], rest[1], temperature))
        # The decomposition of KD that gives the method its name.
        whole = slow_kl(s, t, temperature)
        assert target[-1] + (1 - theirs[y]) * others[-1] == pytest.approx(whole, rel=1e-9)
    assert_equal(losses.target_class_kl(student, teacher, targets, temperature), target)
    assert_equal(losses.other_classes_kl(student, teacher, targets, temperature), others)


@pytest.mark.parametrize("loss", [losses.target_class_kl, losses.other_classes_kl])
def test_dkd_leaves_rows_without_target_out_and_stays_finite(loss: object) -> None:
    student, teacher = draw(4, 5, scale=300.0), draw(4, 5, scale=300.0)
    targets = torch.tensor([0, MISSING_TARGET, 4, MISSING_TARGET])
    value = loss(student, teacher, targets, 1.0)
    value.sum().backward()
    assert value[[1, 3]].tolist() == [0, 0]
    assert bool(value.isfinite().all() & student.grad.isfinite().all())
    assert bool((student.grad[[1, 3]] == 0).all())


def test_dkd_of_two_classes_has_no_others() -> None:
    student, teacher = draw(3, 2), draw(3, 2)
    value = losses.other_classes_kl(student, teacher, torch.tensor([0, 1, 1]), 4.0)
    value.sum().backward()
    assert value.tolist() == [0, 0, 0]
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("loss", [losses.target_class_kl, losses.other_classes_kl])
def test_dkd_gradient(loss: object) -> None:
    student, teacher, targets = draw(3, 4), draw(3, 4).detach(), torch.tensor([3, 0, 1])
    loss(student, teacher, targets, 2.0).sum().backward()
    slow = gradient_by_differences(student, lambda x: loss(x, teacher, targets, 2.0).sum())
    torch.testing.assert_close(student.grad, slow, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 4), (3, 9), (2, 6, 2, 3)])
def test_kendall_tau_b(shape: tuple[int, ...]) -> None:
    # Few different values, so that there are ties.
    one, other = (torch.randint(0, 4, shape).double() for _ in range(2))
    wanted = []
    for row in range(shape[0]):
        first, second = (side[row].reshape(shape[1], -1).T.tolist() for side in (one, other))
        taus = [kendalltau(a, b, variant="b").statistic for a, b in zip(first, second, strict=True)]
        # Where all values of one side are equal, scipy says NaN; such a row says nothing, hence 0.
        taus = [0.0 if math.isnan(tau) else float(tau) for tau in taus]
        wanted.append(sum(taus) / len(taus))
    assert_equal(losses.kendall_tau_b(one, other), wanted)


def test_kendall_tau_b_by_counting_pairs() -> None:
    one, other = [3.0, 1.0, 1.0, 2.0], [2.0, 2.0, 0.0, 5.0]
    pairs = [((one[i] - one[j]), (other[i] - other[j])) for i, j in combinations(range(4), 2)]
    agree = sum(1 if a * b > 0 else -1 if a * b < 0 else 0 for a, b in pairs)
    untied = [sum(pair[side] != 0 for pair in pairs) for side in (0, 1)]
    found = losses.kendall_tau_b(torch.tensor([one]).double(), torch.tensor([other]).double())
    assert_equal(found, [agree / math.sqrt(untied[0] * untied[1])])


def test_kendall_tau_b_of_no_rows_and_of_constants() -> None:
    assert losses.kendall_tau_b(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert losses.kendall_tau_b(torch.ones(2, 4), torch.randn(2, 4)).tolist() == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_non_target_kl(shape: tuple[int, int]) -> None:
    student, teacher, targets = draw(*shape), draw(*shape), torch.randint(0, shape[1], shape[:1])
    targets[0] = MISSING_TARGET
    wanted = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        sides = [[0.0 if c == y else value for c, value in enumerate(row)] for row in (s, t)]
        wanted.append(slow_kl(sides[0], sides[1], 1.0))
    assert_equal(losses.non_target_kl(student, teacher, targets), wanted)


def test_non_target_kl_of_maps_is_the_mean_over_pixels() -> None:
    student, teacher, targets = draw(2, 4, 3, 2), draw(2, 4, 3, 2), torch.randint(0, 4, (2, 3, 2))
    flat = [value.movedim(1, -1).reshape(-1, 4) for value in (student, teacher)]
    by_pixel = losses.non_target_kl(flat[0], flat[1], targets.flatten()).view(2, 6).mean(1)
    assert_equal(losses.non_target_kl(student, teacher, targets), by_pixel.detach())


@pytest.mark.parametrize("rows", [9, 500])
def test_contrast(rows: int) -> None:
    """Few rows take all products and pick, many gather entries: both are the same numbers."""
    anchors, bank = draw(3, 4), torch.randn(rows, 4, dtype=torch.float64)
    candidates = torch.stack([torch.randperm(rows)[:6] for _ in range(3)])
    logits = losses.contrast_logits(anchors, bank, candidates, 0.5)
    for b in range(3):
        for k in range(6):
            product = sum(float(anchors[b, d].detach()) * float(bank[candidates[b, k], d]) for d in range(4))
            assert float(logits[b, k].detach()) == pytest.approx(product / 0.5)
    log_z = losses.log_normaliser(logits, rows)
    exponentials = [math.exp(value) for row in logits.tolist() for value in row]
    assert math.exp(float(log_z.detach())) == pytest.approx(rows * sum(exponentials) / len(exponentials))
    wanted, noise, epsilon = [], 5 / rows, 1e-7
    for row in logits.tolist():
        x = [math.exp(value) / math.exp(float(log_z.detach())) for value in row]
        positive = math.log(x[0] / (x[0] + noise + epsilon))
        wanted.append(-positive - sum(math.log(noise / (value + noise + epsilon)) for value in x[1:]))
    assert_equal(losses.contrast_nce(logits, log_z, rows), wanted)


def test_contrast_does_not_overflow_and_gives_the_normaliser_no_gradient() -> None:
    logits = (torch.randn(4, 6) * 1e3).requires_grad_()
    log_z = losses.log_normaliser(logits, 50)
    value = losses.contrast_nce(logits, log_z, 50)
    value.sum().backward()
    assert bool(value.isfinite().all() & logits.grad.isfinite().all())
    apart = torch.randn(3, 5).double().requires_grad_()
    losses.contrast_nce(apart, losses.log_normaliser(apart, 50), 50).sum().backward()
    fixed = losses.log_normaliser(apart.detach(), 50)
    slow = gradient_by_differences(apart, lambda x: losses.contrast_nce(x, fixed, 50).sum())
    torch.testing.assert_close(apart.grad, slow, rtol=1e-5, atol=1e-7)


def test_squared_error() -> None:
    one, other = draw(3, 2, 4), draw(3, 2, 4)
    pairs = zip(one.flatten(1).tolist(), other.flatten(1).tolist(), strict=True)
    assert_equal(
        losses.squared_error(one, other), [sum((a - b) ** 2 for a, b in zip(*p, strict=True)) / 8 for p in pairs]
    )


def test_salience() -> None:
    assert_equal(losses.min_max(torch.tensor([2.0, 5.0, 3.0]).double()), [0.0, 1.0, 1 / 3])
    assert losses.min_max(torch.full((3,), 7.0)).tolist() == [0, 0, 0]
    assert losses.least_salient(torch.tensor([0.3, 0.0, 1.0, 0.1, 0.2]), 0.75).tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert losses.least_salient(torch.zeros(4), 0.5).tolist() == [True, True, False, False]
    assert not bool(losses.least_salient(torch.rand(9), 0.1).any())
