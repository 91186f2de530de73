"""A pass whose result nobody reads ends after the last layer that is read, and gives the same values to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossdistill import Batch, Network
from crossdistill.errors import SignalError, TapError
from crossdistill.outputs import Signal
from crossdistill.teacher import Live

BATCH = Batch({"x": torch.randn(4, 3)}, torch.arange(4))
FIRST, SECOND = Signal.feature("first"), Signal.feature("second")


class Chain(nn.Module):
    """Layers first, second and last; `order` may run one several times."""

    in_order = True

    def __init__(self, order: tuple[str, ...] = ("first", "second", "last"), in_place: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(3, 3) for _ in range(3))
        self.order, self.in_place = order, in_place
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The embedding; errors of layers are caught, as in networks that fall back to another way."""
        for name in self.order:
            try:
                x = getattr(self, name)(x)
            except Exception:
                x = x * 0
            self.ran.append(name)
            x = x.relu_() if self.in_place else x.relu()
        return {"embedding": x}


def passes(network: Network, signals: set[Signal], count: int = 3, **options: Any) -> list[Any]:
    """Some passes; `ran` of the module holds the layers of the last one that ended."""
    found = []
    for _ in range(count):
        network.module.ran.clear()
        with torch.no_grad():
            found.append(network(BATCH, signals, **options))
    return found


@pytest.mark.parametrize("in_place", [False, True])
def test_a_pass_ends_after_the_last_layer_that_is_read(in_place: bool) -> None:
    network = Network(Chain(in_place=in_place), ("x",), ("first", "second"))
    (whole,) = passes(network, {FIRST, SECOND}, 1)
    assert whole.embedding is not None
    # Where a value is overwritten in place, a second pass keeps a copy.
    assert network.module.ran[-3:] == ["first", "second", "last"]
    for outputs in passes(network, {FIRST, SECOND}, only=True):
        assert torch.equal(outputs.need(FIRST), whole.need(FIRST))
        assert torch.equal(outputs.need(SECOND), whole.need(SECOND))
        # Nothing else is there, whole pass or not.
        assert (outputs.embedding, outputs.logits) == (None, None)
        with pytest.raises(SignalError, match="embedding"):
            outputs.need(Signal.EMBEDDING)
    assert network.module.ran == ["first"], "the pass ended in the second layer"


def test_what_is_read_after_the_layers_is_computed() -> None:
    network = Network(Chain(), ("x",), ("first",))
    for outputs in passes(network, {FIRST, Signal.EMBEDDING}, only=True):
        assert outputs.embedding is not None
    assert network.module.ran == ["first", "second", "last"]
    # Without a word of the caller, all is computed.
    assert passes(network, {FIRST})[-1].embedding is not None


@pytest.mark.parametrize("order", [("first", "second", "first"), ("second", "first", "last", "first")])
def test_of_a_layer_that_runs_several_times_the_last_value_is_read(order: tuple[str, ...]) -> None:
    network = Network(Chain(order), ("x",), ("first", "second"))
    (whole,) = passes(network, {FIRST}, 1)
    for outputs in passes(network, {FIRST}, only=True):
        assert torch.equal(outputs.need(FIRST), whole.need(FIRST))
    assert tuple(network.module.ran) == order


def test_a_network_that_does_not_say_that_its_layers_run_in_order_runs_whole() -> None:
    module = Chain()
    module.in_order = False
    network = Network(module, ("x",), ("first",))
    assert all(outputs.embedding is not None for outputs in passes(network, {FIRST}, only=True))
    assert module.ran == ["first", "second", "last"]


def test_a_layer_that_never_runs_is_refused() -> None:
    network = Network(Chain(("first", "last")), ("x",), ("first", "second"))
    with pytest.raises(TapError, match="second"):
        network(BATCH, {FIRST, SECOND}, only=True)


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_teacher_stops_and_one_that_trains_does_not(trained: bool) -> None:
    network = Network(Chain(), ("x",), ("first",))
    network.probe(BATCH)
    teacher = Live("t", network, {FIRST}, trained=trained)
    for _ in range(2):
        network.module.ran.clear()
        outputs = teacher(BATCH)
    assert (outputs.embedding is None) != trained
    assert network.module.ran == (["first", "second", "last"] if trained else [])
