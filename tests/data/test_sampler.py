"""Which rows make which step: a function of seed and epoch alone, that can be entered anywhere."""

from collections import Counter

import pytest
import torch

from crossdistill.data.sampler import Order, share_of
from crossdistill.runtime.hashing import derived_seed


def order(rows: int = 23, num_rows: int | None = None, size: int = 5, seed: int = 0, limit: int | None = None) -> Order:
    return Order(torch.arange(rows) + 100, num_rows or rows, size, seed, limit)


def test_an_epoch_has_every_row_once_and_a_short_last_step() -> None:
    steps = list(order().epoch(0))
    assert [len(step) for step in steps] == [5, 5, 5, 5, 3]
    assert order().steps == 5
    assert sorted(torch.cat(steps).tolist()) == list(range(100, 123))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def flat(made: Order, epoch: int) -> list[int]:
        return torch.cat(list(made.epoch(epoch))).tolist()

    torch.manual_seed(5)
    first = flat(order(), 3)
    torch.manual_seed(6)
    assert flat(order(), 3) == first
    assert flat(order(), 4) != first
    assert flat(order(seed=1), 3) != first
    before = torch.get_rng_state()
    flat(order(), 0)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are touched"


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_can_be_entered_at_any_step(start: int) -> None:
    whole = list(order().epoch(2))
    rest = list(order().epoch(2, start))
    assert [step.tolist() for step in rest] == [step.tolist() for step in whole[start:]]


def test_few_labelled_rows_are_cycled_in_as_many_steps_as_all() -> None:
    few = order(rows=4, num_rows=23)
    steps = list(few.epoch(0))
    assert len(steps) == few.steps == order().steps
    assert [len(step) for step in steps] == [5, 5, 5, 5, 3]
    counts = Counter(torch.cat(steps).tolist())
    assert set(counts) == {100, 101, 102, 103}
    assert set(counts.values()) <= {5, 6}, "each as often as the others, but for the last round"


def test_a_limit_shortens_an_epoch() -> None:
    assert order(limit=2).steps == 2
    assert [step.tolist() for step in order(limit=2).epoch(1)] == [step.tolist() for step in order().epoch(1)][:2]
    assert order(limit=99).steps == 5


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 2, 7, 12])
def test_shares_of_ranks_partition_the_rows(number: int, ranks: int, parts: int) -> None:
    rows = torch.randperm(number)
    shares = [share_of(rows, rank, ranks, parts) for rank in range(ranks)]
    assert sorted(torch.cat([part for share in shares for part in share]).tolist()) == list(range(number))
    assert all(1 <= len(share) <= parts for share in shares), "every rank takes part in every step"
    for rank, share in enumerate(shares):
        assert torch.cat(share).tolist() == rows[rank::ranks].tolist()
        assert all(len(part) for part in share) or len(share) == 1
    assert [part.tolist() for part in share_of(rows, 0, 1, 1)] == [rows.tolist()], "one rank has the rows as they are"


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derived_seed("order", 0, 1) == 6998642760411335394
    found = {derived_seed("order", 0, 1), derived_seed("order", 1, 0), derived_seed("order", "0", 11), derived_seed()}
    assert len(found) == 4
    assert all(0 <= seed < 2**63 for seed in found)


def test_batches_of_similar_length_have_every_row_once_and_can_be_entered_anywhere() -> None:
    lengths = torch.rand(200, generator=torch.Generator().manual_seed(0))
    made = Order(torch.arange(103), 103, 5, 0, buckets=10, lengths=lengths)
    steps = [step.tolist() for step in made.epoch(1)]
    assert sorted(torch.cat(list(made.epoch(1))).tolist()) == list(range(103))
    assert [len(step) for step in steps] == [5] * 20 + [3]
    assert [step.tolist() for step in made.epoch(1, 7)] == steps[7:]
    assert [step.tolist() for step in made.epoch(2)] != steps
    plain = Order(torch.arange(103), 103, 5, 0)
    similar, random = (sum(float(lengths[s].amax() - lengths[s].amin()) for s in o.epoch(1)) for o in (made, plain))
    assert similar < 0.3 * random
    firsts = [float(lengths[step].mean()) for step in made.epoch(1)]
    assert firsts != sorted(firsts), "long batches are not all at the end"
