"""How many rows go together: counted from what a few hold, the same each time, and nothing of the run moves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.batch import Batch
from crossdistill.planning.part_size import FEW_BYTES, FEW_ROWS, MOST_ROWS, PART_BYTES, rows_at_once

CPU = torch.device("cpu")
KILO = 256
"""Numbers in a kilobyte."""


def rows(work: Callable[[Tensor], object], shape: tuple[int, ...] = (KILO,), total: int = 10_000) -> int:
    def batch(number: int) -> Batch:
        return Batch({"one": torch.ones(number, *shape)}, torch.arange(number))

    def run(given: Batch) -> object:
        one = given.inputs["one"]
        assert isinstance(one, Tensor)
        return work(one)

    return rows_at_once(run, batch, total, CPU)


def test_small_rows_go_by_the_thousand() -> None:
    assert rows(lambda one: one + 1) == MOST_ROWS
    assert rows(lambda one: one + 1, total=300) == 300
    assert rows(lambda one: one, total=0) == 1


def test_rows_go_by_what_is_held_at_the_peak() -> None:
    """An input of 1 kB and an output of 400 kB, and of several only those that are there together."""
    wanted = PART_BYTES["cpu"] // (401 * 1024)
    assert rows(lambda one: one.repeat(1, 400)) == wanted

    def one_after_another(one: Tensor) -> Tensor:
        for _ in range(4):
            wide = one.repeat(1, 400)
            one = wide[:, :KILO].clone()
            del wide
        return one

    # The row of the round before, and the next one.
    assert rows(one_after_another) == PART_BYTES["cpu"] // (402 * 1024)


def test_views_and_weights_count_once() -> None:
    weight = nn.Parameter(torch.ones(KILO, 100 * KILO))
    assert rows(lambda one: (one @ weight).view(-1, 100, KILO).transpose(1, 2)) == PART_BYTES["cpu"] // (101 * 1024)
    assert rows(lambda one: functional.linear(one, (weight * 2).t())) == PART_BYTES["cpu"] // (101 * 1024)


def test_a_few_large_rows_still_go_together_until_they_hold_too_much() -> None:
    assert rows(lambda one: one.repeat(1, 5_000)) == FEW_ROWS
    assert rows(lambda one: one.repeat(1, 50_000)) == FEW_BYTES // (50_001 * 1024)


@pytest.mark.parametrize("training", [False, True])
def test_random_numbers_stay_where_they_are(training: bool) -> None:
    before = torch.get_rng_state()
    rows(nn.Dropout().train(training))
    rows(torch.rand_like)
    assert torch.equal(torch.get_rng_state(), before)


def test_absent_rows_count_as_others_do() -> None:
    def batch(number: int) -> Batch:
        nobody = torch.zeros(number, dtype=torch.bool)
        return Batch({"one": torch.ones(number, KILO)}, torch.arange(number), present={"one": nobody})

    def run(given: Batch) -> object:
        present = given.rows_with(("one",))
        one = given.inputs["one"]
        assert isinstance(one, Tensor)
        return (one if present is None else one[present]).repeat(1, 400)

    assert rows_at_once(run, batch, 10_000, CPU) == PART_BYTES["cpu"] // (401 * 1024)
