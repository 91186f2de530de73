"""Routing against a slow re-derivation: Python loops in float64, written from the equation."""

import math
from typing import Literal

import pytest
import torch
from derivations import assert_equal, draw, gradient_by_differences, slow_kl
from facts import raises

from crossdistill.errors import SettingError, ShapeError
from crossdistill.losses import distillation_kl, routed_kl, top_teachers, weighted_kl


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
    assert bool(student.grad.isfinite().all())


def test_learned_routing_reaches_the_gate_and_balanced_routing_does_not() -> None:
    student, gate, teachers = draw(3, 4), draw(3, 2), draw(2, 3, 4).detach()
    weighted_kl(student, teachers, gate, 2, 4.0).sum().backward()
    # Descending moves the probability of each row to the teacher that is easier to follow.
    gaps = distillation_kl(student, teachers[0], 4.0) - distillation_kl(student, teachers[1], 4.0)
    assert torch.equal(gate.grad[:, 0].sign(), gaps.detach().sign())


def test_learned_routing_with_one_teacher_of_several_would_not_learn() -> None:
    student, gate, teachers = draw(3, 4), draw(3, 2), draw(2, 3, 4).detach()
    with raises(SettingError, "k is 1"):
        weighted_kl(student, teachers, gate, 1, 4.0)
    alone = weighted_kl(student, teachers[:1], gate[:, :1], 1, 4.0)
    assert_equal(alone, distillation_kl(student, teachers[0], 4.0).detach())


def test_ties_go_to_the_lower_index_and_logits_choose_as_probabilities_do() -> None:
    assert top_teachers(torch.zeros(2, 5), 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    gate = torch.randn(50, 6, dtype=torch.float64)
    assert torch.equal(top_teachers(gate, 3), top_teachers(gate.softmax(1), 3))


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_a_number_of_teachers(k: int) -> None:
    with raises(SettingError, f"k is {k}", "3 teachers", "1 to 3"):
        top_teachers(torch.zeros(2, 3), k)


def test_routing_names_what_does_not_fit(unchecked: None) -> None:
    with raises(ShapeError, "(3, 2, 5)", "(2, 4)"):
        routed_kl(draw(2, 4), draw(3, 2, 5), draw(2, 3), 1, 4.0)
    with raises(SettingError, "'max'", "'sum'", "'mean'"):
        routed_kl(draw(2, 4), draw(3, 2, 4), draw(2, 3), 1, 4.0, reduce="max")
