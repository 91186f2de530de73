"""Heads of several seeds and learning rates at once, against one head of PyTorch, and what they may read."""

from typing import Any

import pytest
import torch
from torch import nn

from crossdistill.probes import heads
from crossdistill.probes.heads import (
    BATCH,
    RATES,
    FittedHeads,
    HeadKind,
    Heads,
    Standard,
    fit_heads,
    slot_classes,
    slot_loss,
)
from crossdistill.probes.metrics import accuracy
from crossdistill.runtime.hashing import derived_seed

WIDTH, CLASSES = 6, 3


def blobs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.arange(rows) % CLASSES
    source = torch.Generator().manual_seed(seed)
    layers = torch.randn(rows, 2, WIDTH, generator=source)
    # The second layer alone says the class.
    layers[:, 1, :CLASSES] += 6 * nn.functional.one_hot(targets, CLASSES)
    return 50 + 10 * layers, targets[:, None]


def fitted(kind: HeadKind, features: torch.Tensor, targets: torch.Tensor, epochs: int, **options: Any) -> FittedHeads:
    read = slot_classes([CLASSES])
    return fit_heads(
        kind,
        features,
        targets,
        [range(60)] * 2,
        range(60, 90),
        CLASSES,
        slot_loss([CLASSES]),
        lambda outputs, wanted: accuracy(read(outputs), wanted),
        seeds=(0, 1),
        epochs=epochs,
        **options,
    )  # type: ignore[arg-type]


def test_each_head_trains_as_one_alone_with_adam_of_pytorch() -> None:
    features, targets = blobs(90)
    rate = 5e-3
    # One epoch, so that the state is the last one: of one step, since 60 rows fit into a batch.
    found = fitted("linear", features, targets, 1, rates=(1e-3, rate))
    values = [value[1, 1].clone() for value in Heads.drawn("linear", 2, WIDTH, CLASSES, (0, 1), 2).values]
    assert len(range(60)) <= BATCH
    rows = Standard.of(features[None, :60]).apply(features[None, :60])[0]
    for value in values:
        value.requires_grad_()
    optimizer = torch.optim.Adam(values, rate)
    mixed = torch.einsum("bld,l->bd", rows, values[0].softmax(0))
    nn.functional.cross_entropy((mixed @ values[1] + values[2]) @ values[3] + values[4], targets[:60, 0]).backward()
    optimizer.step()
    assert found.rates[1] == rate
    for mine, alone in zip(found.heads.values, values, strict=True):
        torch.testing.assert_close(mine[1, 0], alone.detach())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_classes_and_the_layer_that_says_them_are_found(kind: HeadKind) -> None:
    features, targets = blobs(120)
    found = fitted(kind, features, targets, 40)
    predicted = found.outputs(features[90:]).argmax(-1)
    assert (predicted == targets[90:, 0]).double().mean() > 0.85
    assert (found.layers[:, 1] > 0.5).all()
    assert set(found.rates) <= set(RATES)


def test_rows_outside_training_and_validation_are_not_read() -> None:
    features, targets = blobs(120)
    spoiled = torch.cat([features[:90], torch.full_like(features[90:], torch.nan)])
    one, other = (fitted("mlp", values, targets, 5) for values in (features, spoiled))
    for mine, yours in zip(one.heads.values, other.heads.values, strict=True):
        assert torch.equal(mine, yours)


def test_a_head_without_a_better_validation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    monkeypatch.setattr(heads, "_epoch", lambda *_: epochs.append(1))
    features, targets = blobs(90)
    fitted("linear", features, targets, 100)
    assert len(epochs) == 1 + heads.PATIENCE


def test_heads_of_one_seed_begin_equally_for_all_rates() -> None:
    made = Heads.drawn("mlp", 1, WIDTH, CLASSES, (3, 4), 2)
    assert torch.equal(made.values[1][0, 0], made.values[1][0, 1])
    assert not torch.equal(made.values[1][0, 0], made.values[1][1, 0])
    assert derived_seed("probe head", 3) != derived_seed("probe head", 4)
