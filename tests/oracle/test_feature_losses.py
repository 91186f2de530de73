"""Losses between features, each against a slow re-derivation: loops in float64, written from the equation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from derivations import assert_equal, draw, gradient_by_differences
from torch import Tensor

from crossdistill import losses
from crossdistill.losses.spatial import as_map, as_vector, same_space
from crossdistill.losses.vid import log_scale_of


def smooth_l1(apart: float) -> float:
    return 0.5 * apart**2 if abs(apart) < 1 else abs(apart) - 0.5


def norm(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def minus(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def flat(lines: list[list[float]]) -> list[float]:
    return [value for line in lines for value in line]


def cosine_at(vertex: list[float], one: list[float], other: list[float]) -> float:
    a, b = minus(one, vertex), minus(other, vertex)
    return dot(a, b) / (norm(a) * norm(b)) if norm(a) and norm(b) else 0.0


def test_rkd_distance() -> None:
    student, teacher = draw(5, 3), draw(5, 4)
    sides = []
    for rows in (student.tolist(), teacher.tolist()):
        between = [[norm(minus(a, b)) for b in rows] for a in rows]
        positive = [value for line in between for value in line if value > 0]
        mean = sum(positive) / len(positive)
        sides.append([value / mean for line in between for value in line])
    wanted = sum(smooth_l1(a - b) for a, b in zip(*sides, strict=True)) / 25
    assert_equal(losses.rkd_distance(student, teacher), wanted)


@pytest.mark.parametrize("numbers", [2**22, 1, 100])
def test_rkd_angle_in_one_block_or_many(numbers: int) -> None:
    student, teacher = draw(5, 3), draw(5, 4)
    mine, theirs = student.tolist(), teacher.tolist()
    places = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    apart = [cosine_at(mine[j], mine[i], mine[k]) - cosine_at(theirs[j], theirs[i], theirs[k]) for i, j, k in places]
    assert_equal(losses.rkd_angle(student, teacher, numbers_at_once=numbers), sum(map(smooth_l1, apart)) / 125)
    losses.rkd_angle(student, teacher.detach(), numbers_at_once=numbers).backward()
    slow = gradient_by_differences(student, lambda x: losses.rkd_angle(x, teacher))
    torch.testing.assert_close(student.grad, slow, rtol=1e-5, atol=1e-7)


def test_rkd_distance_gradient() -> None:
    student, teacher = draw(4, 3), draw(4, 5).detach()
    losses.rkd_distance(student, teacher).backward()
    slow = gradient_by_differences(student, lambda x: losses.rkd_distance(x, teacher))
    torch.testing.assert_close(student.grad, slow, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [losses.rkd_distance, losses.rkd_angle])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_rkd_of_few_or_equal_rows_stays_finite(loss: Callable[[Tensor, Tensor], Tensor], rows: int) -> None:
    student = torch.ones(rows, 3, requires_grad=True)
    value = loss(student, torch.randn(rows, 4))
    value.backward()
    assert bool(value.isfinite())
    assert bool(student.grad.isfinite().all())
    assert float(student.grad.abs().sum()) < 1


def pooled(values: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Adaptive mean pooling: cell i covers floor(i H / h) to ceil((i + 1) H / h)."""
    tall, wide = len(values), len(values[0])
    found = []
    for i in range(height):
        line = []
        for j in range(width):
            rows = range(i * tall // height, -(-(i + 1) * tall // height))
            columns = range(j * wide // width, -(-(j + 1) * wide // width))
            line.append(sum(values[r][c] for r in rows for c in columns) / (len(rows) * len(columns)))
        found.append(line)
    return found


def maps_of(feature: Tensor, size: tuple[int, int]) -> list[list[list[float]]]:
    """Each row's channels, pooled and flattened."""
    return [
        [[value for line in pooled(channel, *size) for value in line] for channel in row] for row in feature.tolist()
    ]


SIZES = [((3, 4, 4), (5, 4, 4)), ((3, 6, 5), (2, 3, 5)), ((2, 3, 4), (4, 6, 2))]


@pytest.mark.parametrize(("mine", "theirs"), SIZES)
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_attention_transfer(mine: tuple[int, ...], theirs: tuple[int, ...], power: float) -> None:
    student, teacher = draw(3, *mine), draw(3, *theirs)
    size = (min(mine[1], theirs[1]), min(mine[2], theirs[2]))
    wanted = []
    for s, t in zip(maps_of(student, size), maps_of(teacher, size), strict=True):
        attention = []
        for channels in (s, t):
            mean = [sum(abs(c[i]) ** power for c in channels) / len(channels) for i in range(len(channels[0]))]
            attention.append([value / norm(mean) for value in mean])
        wanted.append(sum((a - b) ** 2 for a, b in zip(*attention, strict=True)) / len(attention[0]))
    assert_equal(losses.attention_transfer(student, teacher, power), wanted)


@pytest.mark.parametrize(("mine", "theirs"), SIZES)
def test_selectivity_transfer(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = draw(2, *mine), draw(2, *theirs)
    size = (min(mine[1], theirs[1]), min(mine[2], theirs[2]))
    wanted = []
    for s, t in zip(maps_of(student, size), maps_of(teacher, size), strict=True):
        a, b = ([[v / norm(c) for v in c] for c in side] for side in (s, t))

        def kernel(one: list[list[float]], other: list[list[float]]) -> float:
            return sum(dot(x, y) ** 2 for x in one for y in other) / (len(one) * len(other))

        wanted.append(kernel(b, b) + kernel(a, a) - 2 * kernel(a, b))
    assert_equal(losses.selectivity_transfer(student, teacher), wanted)


def test_probabilistic_transfer() -> None:
    student, teacher = draw(4, 3), draw(4, 5)
    sides = []
    for rows in (student.tolist(), teacher.tolist()):
        unit = [[value / (norm(row) + 1e-7) for value in row] for row in rows]
        close = [[(dot(a, b) + 1) / 2 for b in unit] for a in unit]
        sides.append([[value / sum(line) for value in line] for line in close])
    pairs = [(q, p) for s, t in zip(*sides, strict=True) for q, p in zip(s, t, strict=True)]
    assert_equal(
        losses.probabilistic_transfer(student, teacher),
        sum(p * math.log((p + 1e-7) / (q + 1e-7)) for q, p in pairs) / 16,
    )


def test_similarity_preserving() -> None:
    student, teacher = draw(4, 3, 2, 2), draw(4, 5)
    sides = []
    for rows in (student.flatten(1).tolist(), teacher.tolist()):
        gram = [[dot(a, b) for b in rows] for a in rows]
        sides.append([value / norm(line) for line in gram for value in line])
    wanted = sum((a - b) ** 2 for a, b in zip(*sides, strict=True)) / 16
    assert_equal(losses.similarity_preserving(student, teacher), wanted)


@pytest.mark.parametrize("loss", [losses.probabilistic_transfer, losses.similarity_preserving])
def test_losses_of_a_batch_without_rows_are_zero(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    value = loss(student, torch.zeros(0, 4))
    value.backward()
    assert float(value.detach()) == 0


def test_gaussian_nll() -> None:
    mean, feature, scale = draw(2, 3, 2, 2), draw(2, 3, 2, 2), draw(3)
    wanted = []
    for m, f in zip(mean.tolist(), feature.tolist(), strict=True):
        total = []
        for c, log_scale in enumerate(scale.tolist()):
            variance = math.log1p(math.exp(log_scale)) + 1e-5
            pairs = zip(flat(m[c]), flat(f[c]), strict=True)
            total += [0.5 * ((a - b) ** 2 / variance + math.log(variance)) for a, b in pairs]
        wanted.append(sum(total) / len(total))
    assert_equal(losses.gaussian_nll(mean, feature, scale), wanted)
    assert math.log1p(math.exp(log_scale_of(5.0))) + 1e-5 == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize(("size", "levels"), [((8, 8), (4, 2, 1)), ((4, 4), (2, 1)), ((1, 1), ()), ((3, 5), (4, 2, 1))])
def test_hierarchical_context(size: tuple[int, int], levels: tuple[int, ...]) -> None:
    student, teacher = draw(2, 3, *size), draw(2, 3, *size)
    wanted = []
    for row in range(2):
        total, weights = 0.0, 0.0
        for number, side in enumerate((max(size), *levels)):
            cut = (min(side, size[0]), min(side, size[1]))
            mine, theirs = (maps_of(value[row : row + 1], cut)[0] for value in (student, teacher))
            squares = [(a - b) ** 2 for s, t in zip(mine, theirs, strict=True) for a, b in zip(s, t, strict=True)]
            weight = 0.5**number
            total, weights = total + weight * sum(squares) / len(squares), weights + weight
        wanted.append(total / weights)
    assert_equal(losses.hierarchical_context(student, teacher), wanted)


def test_partial_distance() -> None:
    student, teacher = draw(2, 3, 4, 2), draw(2, 3, 4, 2)
    margins = [-0.5, -2.0, 0.0]
    wanted = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total = 0.0
        for c, margin in enumerate(margins):
            for a, b in zip(flat(s[c]), flat(t[c]), strict=True):
                if b > 0 or (margin < b <= 0 and a > b):
                    total += (a - b) ** 2
                elif b <= margin and a > margin:
                    total += (a - margin) ** 2
        wanted.append(total)
    assert_equal(losses.partial_distance(student, teacher, torch.tensor(margins).double()), wanted)


def test_normal_margin_is_the_mean_of_what_is_below_zero() -> None:
    mean, deviation = 0.3, 0.7
    points = np.random.default_rng(0).normal(mean, deviation, 2_000_000)
    found = losses.normal_margin(*torch.tensor([[mean], [-deviation]], dtype=torch.float64))
    assert float(found) == pytest.approx(points[points < 0].mean(), abs=2e-3)


def slow_flow(features: list[np.ndarray], wanted: list[np.ndarray] | None, k: int) -> tuple[list[np.ndarray], list]:
    """Directions of one row's stages: the teacher's own, or the student's that match `wanted`."""
    directions, weights = [], []
    for stage, feature in enumerate(features):
        _, values, right = np.linalg.svd(feature.reshape(-1, feature.shape[-1]), full_matrices=False)
        own = right[: k if wanted is None else k + 3]
        if wanted is not None:
            cosines = own @ wanted[stage]
            best = np.abs(cosines).argmax(0)
            own = np.stack([own[b] * np.sign(cosines[b, j]) for j, b in enumerate(best)])
        directions.append(own.T)
        weights.append(values[:k] / np.linalg.norm(values[:k]))
    return directions, weights


@pytest.mark.parametrize("k", [1, 2])
def test_singular_flow(k: int) -> None:
    student = [draw(2, 3, 6, 5), draw(2, 4, 4, 4), draw(2, 2, 5, 5)]
    teacher = [draw(2, 5, 6, 5), draw(2, 3, 4, 4), draw(2, 3, 5, 5)]
    wanted = []
    for row in range(2):
        mine, theirs = ([side[row].detach().numpy() for side in sides] for sides in (student, teacher))
        there, weights = slow_flow(theirs, None, k)
        here, _ = slow_flow(mine, there, k)
        total = 0.0
        for stage in range(1, 3):
            for j in range(k):
                flows = []
                for side in (here, there):
                    now, before = (side[s][:, j] * weights[s][j] for s in (stage, stage - 1))
                    flows.append(np.exp(-((now[:, None] - before[None, :]) ** 2) / 8))
                total += float(((flows[0] - flows[1]) ** 2).sum())
        wanted.append(total)
    assert_equal(losses.singular_flow(student, teacher, k), wanted)


def test_singular_flow_gradient() -> None:
    student, teacher = [draw(1, 2, 3, 3), draw(1, 3, 3, 4)], [draw(1, 3, 3, 3), draw(1, 2, 3, 4)]
    losses.singular_flow(student, teacher).sum().backward()
    for stage in (0, 1):

        def loss(x: Tensor, stage: int = stage) -> Tensor:
            return losses.singular_flow([x if i == stage else value for i, value in enumerate(student)], teacher).sum()

        slow = gradient_by_differences(student[stage], loss)
        torch.testing.assert_close(student[stage].grad, slow, rtol=1e-4, atol=1e-7)
    assert teacher[0].grad is None


def test_singular_flow_of_dead_maps_has_a_finite_gradient() -> None:
    student = [torch.zeros(2, 3, 4, 4, requires_grad=True), torch.ones(2, 3, 4, 4, requires_grad=True)]
    losses.singular_flow(student, [torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]).sum().backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in student)


def test_features_of_any_shape_are_maps_and_vectors() -> None:
    for shape, as_a_map in (((5,), (5, 1, 1)), ((5, 7), (5, 7, 1)), ((5, 2, 3), (5, 2, 3)), ((5, 4, 2, 3), (5, 8, 3))):
        feature = torch.randn(2, *shape)
        assert tuple(as_map(feature).shape[1:]) == as_a_map
        torch.testing.assert_close(as_vector(feature), feature.reshape(2, 5, -1).mean(2))
    one, other = same_space(torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 6))
    assert (one.shape, other.shape) == ((2, 3, 4, 2), (2, 5, 4, 2))
