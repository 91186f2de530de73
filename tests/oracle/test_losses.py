"""Every loss against a slow re-derivation: Python loops in float64, written from the equation."""

import math
from collections.abc import Iterator
from typing import Literal

import jaxtyping
import pytest
import torch
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
    routed_kl,
    top_teachers,
    weighted_kl,
)

SHAPES = [(1, 2), (5, 3), (4, 11), (3, 1)]
DENSE = [(2, 3, 4, 5), (1, 2, 1, 1), (3, 4, 2, 7)]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations off, as users run: the losses' own messages are then what they see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def draw(*shape: int, scale: float = 2.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).requires_grad_()


def probabilities(logits: list[float], temperature: float) -> list[float]:
    highest = max(logits)
    weights = [math.exp((value - highest) / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def slow_kl(student: list[float], teacher: list[float], temperature: float, squared: bool = True) -> float:
    pairs = zip(probabilities(teacher, temperature), probabilities(student, temperature), strict=True)
    return (temperature**2 if squared else 1.0) * sum(t * (math.log(t) - math.log(s)) for t, s in pairs if t > 0)


def gradient_by_differences(value: Tensor, loss: object, step: float = 1e-6) -> Tensor:
    assert callable(loss)
    result = torch.zeros_like(value)
    with torch.no_grad():
        for i in range(value.numel()):
            moved = [value.detach().clone() for _ in range(2)]
            moved[0].view(-1)[i] += step
            moved[1].view(-1)[i] -= step
            result.view(-1)[i] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    return result


def assert_equal(ours: Tensor, wanted: float | list[float] | Tensor) -> None:
    torch.testing.assert_close(ours.detach(), torch.as_tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


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
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = torch.randn(3, 5).half(), torch.randn(3, 5)
    value = distillation_kl(student, teacher, 4.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, distillation_kl(student.float(), teacher, 4.0))


def test_distillation_kl_refuses_what_would_broadcast(unchecked: None) -> None:
    with pytest.raises(ShapeError, match=r"teacher's logits are \(4, 1\) and the student's \(4, 5\)"):
        distillation_kl(draw(4, 5), draw(4, 1), 4.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature is"):
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
    assert logits.grad is not None
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
    assert logits.grad is not None
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
    assert logits.grad is not None
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
    with pytest.raises(ShapeError, match=r"targets \(3, 1\) of torch.int64; possible are class indices .* \(3,\)"):
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


def _collaboration_with(members: dict[str, Tensor], name: str, value: Tensor, only_as_learner: bool) -> Tensor:
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
        slow = gradient_by_differences(logits, lambda x, name=name: _collaboration_with(members, name, x, detach))
        torch.testing.assert_close(logits.grad, slow, rtol=1e-5, atol=1e-7)


def test_collaboration_needs_two() -> None:
    with pytest.raises(SettingError, match="at least two members, found 1: image"):
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
    assert callable(balance)
    gate = gate.clone().requires_grad_()
    value = balance(gate)
    value.backward()
    assert gate.grad is not None
    assert bool(value.isfinite())
    assert bool(gate.grad.isfinite().all())


def test_balance_is_zero_when_the_load_is_even_though_each_row_is_certain() -> None:
    gate = torch.eye(4, dtype=torch.float64) * 50
    assert float(balance_kl(gate)) == pytest.approx(0, abs=1e-12)
    assert float(balance_cv(gate)) == pytest.approx(0, abs=1e-12)


# ---- routing


def slow_choice(gate: list[float], k: int, available: list[bool]) -> list[int]:
    order = sorted(range(len(gate)), key=lambda j: (not available[j], -gate[j], j))
    return [j for j in order[:k] if available[j]]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("absent", [False, True])
def test_routed_kl(k: int, reduce: Literal["sum", "mean"], absent: bool) -> None:
    student, gate = draw(6, 5), draw(6, 4)
    teachers = draw(4, 6, 5).detach()
    available = torch.rand(6, 4) < 0.5 if absent else torch.ones(6, 4, dtype=torch.bool)
    if absent:
        available[0] = False
        teachers[~available.T] = math.nan
    wanted = []
    for b in range(6):
        chosen = slow_choice(gate[b].tolist(), k, available[b].tolist())
        terms = [slow_kl(student[b].tolist(), teachers[j, b].tolist(), 4.0) for j in chosen]
        wanted.append(sum(terms) / (max(len(terms), 1) if reduce == "mean" else 1))
    value = routed_kl(student, teachers, gate, k, 4.0, reduce=reduce, available=available if absent else None)
    assert_equal(value, wanted)
    value.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert gate.grad is None


def test_routed_kl_of_maps() -> None:
    student, gate, teachers = draw(2, 3, 2, 2), draw(2, 3), draw(3, 2, 3, 2, 2)
    wanted = []
    for b in range(2):
        total = 0.0
        for j in slow_choice(gate[b].tolist(), 2, [True] * 3):
            for h in range(2):
                for w in range(2):
                    total += slow_kl(student[b, :, h, w].tolist(), teachers[j, b, :, h, w].tolist(), 4.0) / 4
        wanted.append(total)
    assert_equal(routed_kl(student, teachers, gate, 2, 4.0), wanted)


@pytest.mark.parametrize(("k", "renormalise"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
@pytest.mark.parametrize("absent", [False, True])
def test_weighted_kl(k: int, renormalise: bool, absent: bool) -> None:
    student, gate = draw(6, 5), draw(6, 4)
    teachers = draw(4, 6, 5).detach()
    available = torch.ones(6, 4, dtype=torch.bool)
    if absent:
        available = torch.rand(6, 4) < 0.5
        available[0] = False
        teachers[~available.T] = math.nan

    def slow(gate_logits: list[list[float]]) -> list[float]:
        values = []
        for b, row in enumerate(gate_logits):
            usable = [j for j in range(4) if available[b, j]]
            soft = {j: math.exp(row[j]) / sum(math.exp(row[i]) for i in usable) for j in usable}
            chosen = slow_choice(row, k, available[b].tolist())
            scale = sum(soft[j] for j in chosen) if renormalise else 1.0
            terms = [soft[j] / scale * slow_kl(student[b].tolist(), teachers[j, b].tolist(), 4.0) for j in chosen]
            values.append(sum(terms))
        return values

    value = weighted_kl(
        student, teachers, gate, k, 4.0, renormalise=renormalise, available=available if absent else None
    )
    assert_equal(value, slow(gate.tolist()))
    value.sum().backward()
    wanted = gradient_by_differences(gate, lambda x: torch.tensor(sum(slow(x.tolist())), dtype=torch.float64))
    torch.testing.assert_close(gate.grad, wanted, rtol=1e-5, atol=1e-7)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_learned_routing_reaches_the_gate_and_balanced_routing_does_not() -> None:
    student, gate, teachers = draw(3, 4), draw(3, 2), draw(2, 3, 4).detach()
    weighted_kl(student, teachers, gate, 2, 4.0).sum().backward()
    assert gate.grad is not None
    # Descending moves the probability of each row to the teacher that is easier to follow.
    gaps = distillation_kl(student, teachers[0], 4.0) - distillation_kl(student, teachers[1], 4.0)
    assert torch.equal(gate.grad[:, 0].sign(), gaps.detach().sign())


def test_learned_routing_with_one_teacher_of_several_would_not_learn() -> None:
    student, gate, teachers = draw(3, 4), draw(3, 2), draw(2, 3, 4).detach()
    with pytest.raises(SettingError, match="k is 1 and weights are renormalised"):
        weighted_kl(student, teachers, gate, 1, 4.0)
    alone = weighted_kl(student, teachers[:1], gate[:, :1], 1, 4.0)
    assert_equal(alone, distillation_kl(student, teachers[0], 4.0).detach())


def test_ties_go_to_the_lower_index() -> None:
    assert top_teachers(torch.zeros(2, 5), 3).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_logits_and_probabilities_choose_alike() -> None:
    gate = torch.randn(50, 6, dtype=torch.float64)
    assert torch.equal(top_teachers(gate, 3), top_teachers(gate.softmax(1), 3))


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_a_number_of_teachers(k: int) -> None:
    with pytest.raises(SettingError, match=f"k is {k}, but there are 3 teachers; possible are 1 to 3"):
        top_teachers(torch.zeros(2, 3), k)


def test_routing_names_what_does_not_fit(unchecked: None) -> None:
    with pytest.raises(ShapeError, match=r"teachers' logits are \(3, 2, 5\), the student's \(2, 4\)"):
        routed_kl(draw(2, 4), draw(3, 2, 5), draw(2, 3), 1, 4.0)
    with pytest.raises(SettingError, match="reduce is 'max'; possible are 'sum' and 'mean'"):
        routed_kl(draw(2, 4), draw(3, 2, 4), draw(2, 3), 1, 4.0, reduce="max")  # type: ignore[arg-type]
