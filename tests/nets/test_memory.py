"""The memory bank of contrast: who is whose negative, the same for whoever draws, and where entries go."""

import math
from typing import Any

import pytest
import torch
from facts import raises
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError
from crossdistill.nets.memory import Memory, moved

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, MISSING_TARGET, 2, 0, MISSING_TARGET])


def memory(labels: Tensor = LABELS, **options: Any) -> Memory:
    return Memory(labels, 4, 0.5, **options)


@pytest.mark.parametrize("count", [3, 8, 30])
@pytest.mark.parametrize("repeat", [False, True])
def test_negatives_are_of_other_classes(count: int, repeat: bool) -> None:
    index = torch.arange(len(LABELS))
    found = memory(repeat=repeat).candidates(index, count, step=3)
    assert found.shape == (len(LABELS), count + 1)
    assert torch.equal(found[:, 0], index)
    for row, negatives in zip(index.tolist(), found[:, 1:].tolist(), strict=True):
        own = int(LABELS[row])
        for negative in negatives:
            other = int(LABELS[negative])
            assert negative != row
            assert own == MISSING_TARGET or other == MISSING_TARGET or own != other
        # The largest class has four rows, so there are eight others at least.
        if not repeat and count <= 8:
            assert len(set(negatives)) == count


def test_a_positive_of_the_same_class() -> None:
    index = torch.arange(len(LABELS))
    positives = torch.stack([memory().candidates(index, 1, step, by_class=True)[:, 0] for step in range(60)])
    assert bool((LABELS[positives] == LABELS[index]).all())
    alone = LABELS[index] == MISSING_TARGET
    assert bool((positives[:, alone] == index[alone]).all())
    assert len(positives[:, index == 0].unique()) == 4


@pytest.mark.parametrize("repeat", [False, True])
def test_every_other_row_is_drawn_alike(repeat: bool) -> None:
    bank = memory(repeat=repeat)
    drawn = torch.cat([bank.candidates(torch.tensor([1]), 4, step)[0, 1:] for step in range(2000)])
    others = (LABELS != 1).nonzero().flatten()
    counts = torch.bincount(drawn, minlength=len(LABELS))
    assert int(counts.sum()) == int(counts[others].sum()) == 8000
    expected = 8000 / len(others)
    chi_square = float(((counts[others] - expected) ** 2 / expected).sum())
    assert chi_square < 30, f"{chi_square:.1f} with {len(others) - 1} degrees of freedom"


@pytest.mark.parametrize("repeat", [False, True])
def test_what_is_drawn_depends_on_the_seed_the_step_and_the_row_alone(repeat: bool) -> None:
    index = torch.tensor([4, 0, 8, 2])
    whole = memory(repeat=repeat, seed=5).candidates(index, 6, step=7)
    torch.rand(3)
    parts = [memory(repeat=repeat, seed=5).candidates(part, 6, step=7) for part in index.split(1)]
    assert torch.equal(whole, torch.cat(parts))
    for other in (memory(repeat=repeat, seed=6).candidates(index, 6, 7), memory(seed=5).candidates(index, 6, 8)):
        assert not torch.equal(whole, other)


def test_blocks_of_keys_do_not_change_what_is_drawn() -> None:
    index = torch.arange(len(LABELS))
    whole = memory(seed=1).candidates(index, 5, 2)
    assert torch.equal(whole, memory(seed=1, keys_at_once=13).candidates(index, 5, 2))


def test_the_seed_is_part_of_the_state() -> None:
    one, two = memory(seed=1), memory(seed=2)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.candidates(torch.arange(4), 3, 0), two.candidates(torch.arange(4), 3, 0))
    assert torch.equal(one.student, two.student)


def test_entries_start_at_length_one_on_average_and_move_to_unit_length() -> None:
    bank = Memory(torch.arange(4000) % 2, 16, 0.5)
    assert float(bank.student.square().sum(1).mean()) == pytest.approx(1.0, abs=0.05)
    rows, new = torch.tensor([3, 7]), torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    before = bank.student.clone()
    bank.move(rows, new, -new)
    assert torch.equal(bank.student[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    wanted = 0.5 * before[rows] + 0.5 * new
    torch.testing.assert_close(bank.student[rows], wanted / wanted.norm(dim=1, keepdim=True))
    torch.testing.assert_close(moved(before, rows, new, 0.5), bank.student)
    assert bank.teacher[rows].norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_the_normaliser_is_measured_over_the_rows_of_all_ranks() -> None:
    bank, logits = memory(), torch.randn(6, 5)
    alone = bank.measured(logits, lambda rows: rows)
    assert float(alone) == pytest.approx(math.log(len(LABELS) * float(logits.exp().mean())))
    other = logits[3:].logsumexp(1)
    both = bank.measured(logits[:3], lambda rows: torch.cat([rows, other]))
    assert float(both) == pytest.approx(float(alone), rel=1e-6)
    assert math.isinf(float(bank.measured(logits[:0], lambda rows: rows)))
    assert bool(bank.normaliser.isinf().all())


def test_one_class_has_no_negatives() -> None:
    with raises(ApplicabilityError, "5 training rows", "class"):
        memory(torch.zeros(5, dtype=torch.int64))
