"""Quotas and temperatures over domains in the order of training rows."""

from collections import Counter

import pytest
import torch
from facts import raises
from pydantic import ValidationError

from crossdistill.data.domain_mix import DomainMix
from crossdistill.data.sampler import Order, share_of
from crossdistill.errors import SettingError

DOMAINS = ["speech"] * 70 + ["music"] * 30
ROWS = torch.arange(100)


def order(mix: DomainMix, batch_size: int = 12, buckets: int = 0, joins: bool = False) -> Order:
    """The order of the rows of both domains, with lengths that grow by row."""
    lengths = (ROWS * 37 % 101).float()
    draw = mix.draw(DOMAINS, ROWS, batch_size, "stage 'x'")
    return Order(ROWS, len(ROWS), batch_size, 3, None, joins, buckets, lengths, draw)


@pytest.mark.parametrize("buckets", [0, 2])
def test_quotas_hold_in_every_batch_of_every_epoch_and_rank(buckets: int) -> None:
    made = order(DomainMix(quotas={"speech": 8, "music": 4}), buckets=buckets, joins=True)
    assert made.steps == 8
    first = [batch.tolist() for batch in made.epoch(0)]
    assert len(first) == 8
    for batch in (*first, *(batch.tolist() for batch in made.epoch(1))):
        assert Counter(DOMAINS[row] for row in batch) == {"speech": 8, "music": 4}
        for rank in (0, 1):
            (share,) = share_of(torch.tensor(batch), rank, 2, 1)
            assert Counter(DOMAINS[row] for row in share.tolist()) == {"speech": 4, "music": 2}
    # A domain's rows repeat only after all were drawn.
    music = Counter(row for batch in first for row in batch if DOMAINS[row] == "music")
    assert max(music.values()) - min(music.values()) <= 1
    assert len(music) == 30
    assert [batch.tolist() for batch in made.epoch(0, start=5)] == first[5:]
    assert [batch.tolist() for batch in made.epoch(1)] != first


def test_batches_with_quotas_hold_similar_lengths() -> None:
    mix = DomainMix(quotas={"speech": 8, "music": 4})

    def spread(made: Order) -> float:
        assert made.lengths is not None
        return sum(float(made.lengths[b].max() - made.lengths[b].min()) for b in made.epoch(0))

    assert spread(order(mix, buckets=8)) < 0.6 * spread(order(mix))


@pytest.mark.parametrize(("temperature", "speech"), [(1.0, 70), (2.0, 60), (1e6, 50)])
def test_a_temperature_gives_its_shares(temperature: float, speech: int) -> None:
    made = order(DomainMix(temperature=temperature))
    rows = [row for batch in made.epoch(4) for row in batch.tolist()]
    assert Counter(DOMAINS[row] for row in rows) == {"speech": speech, "music": 100 - speech}


def test_quotas_that_do_not_fit_are_refused() -> None:
    with raises(SettingError, "speech=8", 9, 12):
        order(DomainMix(quotas={"speech": 8, "music": 1}))
    with raises(SettingError, "'musik'", "'music'"):
        order(DomainMix(quotas={"speech": 8, "musik": 4}))
    with raises(SettingError, "'music'"):
        order(DomainMix(quotas={"speech": 12}))
    with pytest.raises(ValidationError, match="found both"):
        DomainMix(quotas={"speech": 1}, temperature=2.0)
    with pytest.raises(ValidationError, match="found neither"):
        DomainMix()
