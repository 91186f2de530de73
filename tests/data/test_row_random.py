"""Random numbers of rows: SplitMix64's own, the same in whatever batch, and spread as they should be."""

import math

import pytest
import torch
from torch import Tensor

from crossdistill.data.row_random import RowRandom

ROWS = torch.arange(20_000)


def splitmix(state: int, number: int) -> int:
    """Output `number` (from 1) of the published generator, in Python's unbounded whole numbers."""
    value = (state + number * 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def state_of(seed: int, *names: int) -> int:
    state = seed
    for name in names:
        state = splitmix(state ^ name, 1)
    return state


def test_the_generator_is_the_published_one() -> None:
    # The first numbers of SplitMix64 from state 1234567, as its reference implementation is known to give them.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix(1234567, number) for number in range(1, 5)] == published


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_numbers_of_a_row_by_hand(seed: int) -> None:
    ids, view = torch.tensor([0, 3, 2**40]), torch.tensor([1, 2, 2**61])
    random = RowRandom(seed, ids, view)
    for row, (own, seen) in enumerate(zip(ids.tolist(), view.tolist(), strict=True)):
        state = state_of(seed, own, seen)
        assert random.whole()[row] == splitmix(state, 1) >> 2
        wanted = [(splitmix(state, number) >> 40) / 2**24 for number in range(1, 7)]
        assert random.uniform(2, 3)[row].flatten().tolist() == wanted
        radius = [math.sqrt(-2 * math.log(1 - u)) for u in wanted[:3]]
        normal = [r * math.cos(2 * math.pi * u) for r, u in zip(radius, wanted[3:], strict=True)]
        assert random.normal(3, 2)[row].flatten()[:3].tolist() == pytest.approx(normal, abs=1e-6)


def test_a_row_has_its_numbers_in_whatever_batch() -> None:
    ids = torch.tensor([5, 9, 2, 9])
    for kind in ("whole", "uniform", "normal"):
        shape = () if kind == "whole" else (4,)
        together: Tensor = getattr(RowRandom(1, ids), kind)(*shape)
        alone = torch.cat([getattr(RowRandom(1, one[None]), kind)(*shape) for one in ids])
        assert torch.equal(together, alone)
        assert torch.equal(together[1], together[3])


def test_they_are_spread_evenly_and_do_not_hang_together() -> None:
    values = RowRandom(3, ROWS).uniform(2)
    assert bool(((values >= 0) & (values < 1)).all())
    assert (torch.histc(values[:, 0], 20, 0, 1) / len(ROWS) - 0.05).abs().max() < 0.006
    other = RowRandom(4, ROWS).uniform(2)
    # Neighbours in a row, neighbouring rows, and seeds: correlations of 20,000 pairs are 0.007 by chance.
    pairs = [(values[:, 0], values[:, 1]), (values[1:, 0], values[:-1, 0]), (values[:, 0], other[:, 0])]
    for one, two in pairs:
        assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 0.03


def test_normal_numbers() -> None:
    values = RowRandom(5, ROWS).normal(3)
    assert values.shape == (len(ROWS), 3)
    assert values.mean(0).abs().max() < 0.03
    assert (values.std(0) - 1).abs().max() < 0.02
    assert (values.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert bool(values.isfinite().all())
