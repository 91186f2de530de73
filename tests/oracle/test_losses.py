"""Every loss against a slow re-derivation: Python loops in float64, written from the equation."""

import math
from functools import partial

import pytest
import torch
from derivations import assert_equal, draw, gradient_by_differences, probabilities, slow_kl
from facts import raises
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import SettingError, ShapeError
from crossdistill.losses import (
    balance_cv,
    balance_kl,
    collaborative_kl,
    collaborative_terms,
    cross_entropy,
    distillation_kl,
)

SHAPES = [(1, 2), (5, 3), (4, 11), (3, 1)]
DENSE = [(2, 3, 4, 5), (1, 2, 1, 1), (3, 4, 2, 7)]


# ---- temperature KL


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("squared", [True, False])
def test_distillation_kl(shape: tuple[int, int], temperature: float, squared: bool) -> None:
    student, teacher = draw(*shape), draw(*shape)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    wanted = [slow_kl(s, t, temperature, squared) for s, t in rows]
    assert_equal(distillation_kl(student, teacher, temperature, squared), wanted)


@pytest.mark.parametrize("shape", DENSE)
def test_distillation_kl_of_maps_is_the_mean_over_pixels(shape: tuple[int, int, int, int]) -> None:
    student, teacher = draw(*shape), draw(*shape)
    wanted = []
    for b in range(shape[0]):
        pixels = [(h, w) for h in range(shape[2]) for w in range(shape[3])]
        values = [slow_kl(student[b, :, h, w].tolist(), teacher[b, :, h, w].tolist(), 4.0) for h, w in pixels]
        wanted.append(sum(values) / len(values))
    assert_equal(distillation_kl(student, teacher, 4.0), wanted)


def test_distillation_kl_gives_both_sides_their_gradient() -> None:
    student, teacher = draw(4, 5), draw(4, 5)
    distillation_kl(student, teacher, 3.0).sum().backward()
    by_student = gradient_by_differences(student, lambda x: distillation_kl(x, teacher, 3.0).sum())
    by_teacher = gradient_by_differences(teacher, lambda x: distillation_kl(student, x, 3.0).sum())
    torch.testing.assert_close(student.grad, by_student, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(teacher.grad, by_teacher, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distillation_kl_stays_finite(scale: float, dtype: torch.dtype) -> None:
    student = (torch.randn(6, 7, dtype=dtype) * scale).requires_grad_()
    teacher = (torch.randn(6, 7, dtype=dtype) * scale).requires_grad_()
    value = distillation_kl(student, teacher, 1.0)
    value.sum().backward()
    assert student.grad is not None
    assert teacher.grad is not None
    assert all(tensor.isfinite().all() for tensor in (value, student.grad, teacher.grad))
    assert bool((value >= -1e-6).all())


def test_distillation_kl_of_equals_is_zero() -> None:
    logits = draw(5, 4)
    value = distillation_kl(logits, logits.detach().clone(), 4.0)
    value.sum().backward()
    assert_equal(value, [0.0] * 5)
    assert float(logits.grad.abs().max()) < 1e-12


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = torch.randn(3, 5).half(), torch.randn(3, 5)
    value = distillation_kl(student, teacher, 4.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, distillation_kl(student.float(), teacher, 4.0))


def test_distillation_kl_refuses_what_would_broadcast(unchecked: None) -> None:
    with raises(ShapeError, "(4, 1)", "(4, 5)"):
        distillation_kl(draw(4, 5), draw(4, 1), 4.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with raises(SettingError, "temperature"):
        distillation_kl(draw(2, 3), draw(2, 3), temperature)


# ---- cross-entropy


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_classes(shape: tuple[int, int]) -> None:
    logits, targets = draw(*shape), torch.randint(0, shape[1], shape[:1])
    targets[0] = MISSING_TARGET
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    wanted = [0.0 if y == MISSING_TARGET else -math.log(probabilities(row, 1.0)[y]) for row, y in rows]
    value = cross_entropy(logits, targets)
    assert_equal(value, wanted)
    value.sum().backward()
    assert bool((logits.grad[0] == 0).all())


@pytest.mark.parametrize("shape", DENSE)
def test_cross_entropy_of_maps_leaves_pixels_without_target_out(shape: tuple[int, int, int, int]) -> None:
    logits, targets = draw(*shape), torch.randint(0, shape[1], (shape[0], *shape[2:]))
    targets[torch.rand(targets.shape) < 0.3] = MISSING_TARGET
    targets[-1] = MISSING_TARGET
    wanted = []
    for b in range(shape[0]):
        values = []
        for h in range(shape[2]):
            for w in range(shape[3]):
                target = int(targets[b, h, w])
                if target != MISSING_TARGET:
                    values.append(-math.log(probabilities(logits[b, :, h, w].tolist(), 1.0)[target]))
        wanted.append(sum(values) / len(values) if values else 0.0)
    value = cross_entropy(logits, targets)
    assert_equal(value, wanted)
    value.sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[-1] == 0).all())


@pytest.mark.parametrize("missing", [float(MISSING_TARGET), math.nan])
def test_cross_entropy_of_distributions(missing: float) -> None:
    logits, targets = draw(4, 6), torch.rand(4, 6, dtype=torch.float64)
    targets[2] = missing
    wanted = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        logs = [math.log(p) for p in probabilities(row, 1.0)]
        wanted.append(-sum(t * log for t, log in zip(target, logs, strict=True)))
    wanted[2] = 0.0
    value = cross_entropy(logits, targets)
    assert_equal(value, wanted)
    value.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_cross_entropy_of_one_hot_targets_is_that_of_their_classes() -> None:
    logits, targets = draw(5, 4), torch.randint(0, 4, (5,))
    one_hot = torch.nn.functional.one_hot(targets, 4).double()
    assert_equal(cross_entropy(logits, one_hot), cross_entropy(logits, targets).detach())


def test_cross_entropy_of_a_batch_without_any_target_is_zero() -> None:
    logits = draw(3, 4)
    value = cross_entropy(logits, torch.full((3,), MISSING_TARGET))
    value.sum().backward()
    assert value.tolist() == [0.0] * 3
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())


def test_cross_entropy_names_the_shapes_that_fit(unchecked: None) -> None:
    with raises(ShapeError, "(3, 1)", "torch.int64", "(3,)"):
        cross_entropy(draw(3, 4), torch.zeros(3, 1, dtype=torch.int64))


# ---- collaboration


@pytest.mark.parametrize("names", [("image", "audio"), ("image", "audio", "mm"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("detach", [False, True])
def test_collaborative(names: tuple[str, ...], detach: bool) -> None:
    members = {name: draw(3, 4) for name in names}
    terms = collaborative_terms(members, 4.0, detach)
    assert set(terms) == {(a, b) for a in names for b in names if a != b}
    for (learner, guide), value in terms.items():
        rows = zip(members[learner].tolist(), members[guide].tolist(), strict=True)
        assert_equal(value, [slow_kl(s, t, 4.0) for s, t in rows])
    total = collaborative_kl(members, 4.0, detach)
    assert_equal(total, torch.stack(list(terms.values())).sum(0).detach())


def _collaboration_with(members: dict[str, Tensor], name: str, only_as_learner: bool, value: Tensor) -> Tensor:
    moved = members | {name: value}
    pairs = [(a, b) for a in members for b in members if a != b and (a == name or not only_as_learner)]
    rows = range(len(value))
    total = sum(slow_kl(moved[a][i].tolist(), moved[b][i].tolist(), 4.0) for a, b in pairs for i in rows)
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("detach", [False, True])
def test_collaborative_gradients(detach: bool) -> None:
    members = {name: draw(2, 3) for name in ("image", "audio", "mm")}
    collaborative_kl(members, 4.0, detach).sum().backward()
    for name, logits in members.items():
        slow = gradient_by_differences(logits, partial(_collaboration_with, members, name, detach))
        torch.testing.assert_close(logits.grad, slow, rtol=1e-5, atol=1e-7)


def test_collaboration_needs_two() -> None:
    with raises(SettingError, "two", "1: image"):
        collaborative_kl({"image": draw(2, 3)}, 4.0)


# ---- load balance


@pytest.mark.parametrize(("rows", "teachers"), [(1, 2), (7, 4), (5, 3), (3, 1)])
def test_balance(rows: int, teachers: int) -> None:
    gate = draw(rows, teachers)
    soft = [probabilities(row, 1.0) for row in gate.tolist()]
    load = [sum(row[j] for row in soft) for j in range(teachers)]
    uniform = 1 / teachers
    divergence = sum(uniform * (math.log(uniform) - math.log(value / rows)) for value in load)
    assert_equal(balance_kl(gate), divergence)
    assert_equal(balance_kl(gate, divide_by_teachers=True), divergence / teachers)
    mean = sum(load) / teachers
    variance = sum((value - mean) ** 2 for value in load) / max(teachers - 1, 1)
    assert_equal(balance_cv(gate), math.sqrt(variance) / mean)


@pytest.mark.parametrize("balance", [balance_kl, balance_cv])
@pytest.mark.parametrize("gate", [torch.zeros(4, 3), torch.eye(3) * 1e4, torch.tensor([[1e4, 0.0, -1e4]] * 5)])
def test_balance_stays_finite(balance: object, gate: Tensor) -> None:
    gate = gate.clone().requires_grad_()
    value = balance(gate)
    value.backward()
    assert bool(value.isfinite())
    assert bool(gate.grad.isfinite().all())


@pytest.mark.parametrize("balance", [balance_kl, balance_cv])
def test_balance_without_rows_is_zero(balance: object) -> None:
    gate = torch.zeros(0, 3, requires_grad=True)
    value = balance(gate)
    value.backward()
    assert float(value.detach()) == 0


def test_balance_is_zero_when_the_load_is_even_though_each_row_is_certain() -> None:
    gate = torch.eye(4, dtype=torch.float64) * 50
    assert float(balance_kl(gate)) == pytest.approx(0, abs=1e-12)
    assert float(balance_cv(gate)) == pytest.approx(0, abs=1e-12)
