"""A network cut in two at a tap is the whole, bit for bit, or says that it cannot be cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import drawn_rows
from facts import raises
from torch import Tensor, nn
from torch.nn import functional

from crossdistill import Batch, Network, Signal
from crossdistill.errors import SplitError, TapError


class Plain(nn.Module):
    """Layers one after another; the activation works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


class Skips(Plain):
    """The input and an early value go around the tap."""

    def forward(self, x: Tensor) -> Tensor:
        early = torch.tanh(x)
        return self.second(self.first(early) + early) + x[:, :3]


class InPlaceEverywhere(Plain):
    """Everything that could be spoiled is: through a view, by a method, by a function."""

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(x)
        value = self.first(skip)
        flat = value.view(-1, 6)
        flat.relu_()
        aside = skip.view(-1)
        aside.add_(1.0)
        functional.leaky_relu(value, inplace=True)
        return self.second(value) * skip[:, :3]


class Functional(Plain):
    """No modules between the layers, and weights that are read by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.first(x * self.scale)) * self.scale + self.shift
        return functional.linear(torch.cat([hidden, x], 1)[:, :6], self.second.weight, self.second.bias)


class Normalised(nn.Module):
    """BatchNorm and dropout, and a branch that is computed after the tap but does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.aside, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(self.first(x))) + self.aside(x).relu_())


class Pooled(nn.Module):
    """Pooling indices go around the tap, as in a segmentation network."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.first = nn.MaxPool1d(2, return_indices=True), nn.Conv1d(1, 1, 1)
        self.unpool, self.second = nn.MaxUnpool1d(2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = self.pool(x[:, None])
        return self.second(self.unpool(self.first(pooled), indices)[:, 0])


class GivesMore(Plain):
    """Logits and an embedding, one of them before and one after the tap."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        early = torch.sigmoid(x)
        value = self.first(early)
        return {"logits": self.second(value), "embedding": early, "sizes": value.shape}


class Nested(nn.Module):
    """A tap that has layers of its own, inside a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Module()
        self.first.inner = Plain()
        self.first.inner.second = nn.Linear(6, 6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.first.inner(x) + x))


CUTTABLE: list[tuple[type[nn.Module], str]] = [
    (Plain, "first"),
    (Plain, "act"),
    (Plain, "second"),
    (Skips, "first"),
    (InPlaceEverywhere, "first"),
    (Functional, "first"),
    (Normalised, "first"),
    (Normalised, "norm"),
    (Pooled, "first"),
    (GivesMore, "first"),
    (Nested, "first.inner"),
    (Nested, "first.inner.first"),
]


def whole_of(network: Network) -> Any:
    with torch.no_grad():
        return network(drawn_rows())


@pytest.mark.parametrize(("kind", "tap"), CUTTABLE, ids=lambda value: getattr(value, "__name__", value))
def test_two_parts_are_exactly_the_whole(kind: type[nn.Module], tap: str) -> None:
    network = Network(kind().eval(), ("a",), (tap,))
    stem, tail = network.split(tap)
    whole = whole_of(network)
    cut = stem(drawn_rows())
    for _ in range(2):
        # Twice: whatever works in place in the tail must not spoil what it was given.
        parts = tail(cut)
        for name in ("logits", "embedding"):
            one, two = getattr(whole, name), getattr(parts, name)
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two), name
    assert torch.equal(whole_of(network).logits, whole.logits)
    # A rewritten tap reaches the result as a hook would.
    wanted = network.edited(drawn_rows(), {tap: lambda value: value * 1.5 - 0.2})
    assert torch.equal(tail(cut.rewritten(cut.value * 1.5 - 0.2)).need(Signal.LOGITS), wanted.need(Signal.LOGITS))
    # The value at the cut is what the layer gave.
    outputs = network(drawn_rows(), {Signal.feature(tap), Signal.cut(tap)})
    assert torch.equal(outputs.cuts[tap].value, outputs.features[tap])


def test_gradient_flows_through_the_tail_of_a_frozen_network() -> None:
    network = Network(Skips().eval().requires_grad_(False), ("a",), ("first",))
    stem, tail = network.split("first")
    cut = stem(drawn_rows())
    value = cut.value.clone().requires_grad_()
    tail(cut.rewritten(value)).need(Signal.LOGITS).square().sum().backward()
    assert value.grad is not None
    assert bool((value.grad != 0).any())


def test_weights_are_shared_with_the_network() -> None:
    network = Network(Plain().eval(), ("a",), ("first",))
    stem, tail = network.split("first")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.7)
    assert torch.equal(tail(stem(drawn_rows())).need(Signal.LOGITS), network(drawn_rows()).need(Signal.LOGITS))
    network.to(torch.float64)
    double = Batch({"a": torch.randn(3, 6, dtype=torch.float64)}, torch.arange(3))
    assert tail(stem(double)).need(Signal.LOGITS).dtype == torch.float64


def test_several_taps_are_cut_in_one_pass() -> None:
    network = Network(Nested().eval(), ("a",), ("first.inner.first", "first.inner.second"))
    network.cuts(drawn_rows(), list(network.taps))
    calls = []
    network.module.first.inner.first.register_forward_hook(lambda *_: calls.append(1))
    cuts = network.cuts(drawn_rows(), list(network.taps))
    assert len(calls) == 1
    whole = network(drawn_rows()).need(Signal.LOGITS)
    for tap, cut in cuts.items():
        assert torch.equal(network.split(tap)[1](cut).need(Signal.LOGITS), whole), tap


def test_a_layer_and_a_layer_inside_it_are_both_taps() -> None:
    network = Network(Nested().eval(), ("a",), ("first.inner.first", "first.inner"))
    whole = network(drawn_rows()).need(Signal.LOGITS)
    for tap, cut in network.cuts(drawn_rows(), ["first.inner", "first.inner.first"]).items():
        assert torch.equal(network.split(tap)[1](cut).need(Signal.LOGITS), whole), tap


def test_the_stem_stops_at_the_tap() -> None:
    """Otherwise banking, or many masks on one stem, would cost the whole network each time."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.later = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)
            self.act2, self.last = nn.ReLU(inplace=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act2(self.later(self.act(self.first(x)))))

    network = Network(Deep().eval(), ("a",), ("first",))
    network.cuts(drawn_rows(), ["first"])
    calls = []
    network.module.later.register_forward_hook(lambda *_: calls.append(1))
    network.cuts(drawn_rows(), ["first"])
    assert calls == []


def test_dropout_of_the_tail_follows_the_mode_of_the_network() -> None:
    network = Network(Normalised().eval(), ("a",), ("first",))
    stem, tail = network.split("first")
    cut = stem(drawn_rows())
    assert torch.equal(tail(cut).need(Signal.LOGITS), tail(cut).need(Signal.LOGITS))
    network.module.drop.train()
    assert not torch.equal(tail(cut).need(Signal.LOGITS), tail(cut).need(Signal.LOGITS))


def test_verifying_leaves_modes_and_statistics_alone() -> None:
    network = Network(Normalised(), ("a",), ("first",)).train()
    network.module.drop.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.cuts(drawn_rows(), ["first"])
    assert network.module.norm.training
    assert not network.module.drop.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Shared(Plain):
    """One layer runs twice: at which of the two would one cut?"""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.act(self.first(x))))


class Never(Plain):
    """The layer does not run."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x)


class DeadEnd(Plain):
    """The layer runs, and nothing comes of it."""

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.second(x)


UNCUTTABLE: list[tuple[Callable[[], nn.Module], tuple[str, ...]]] = [
    (Shared, ("'first'", "2 times")),
    (Never, ("'first'", "0 times")),
    (DeadEnd, ("DeadEnd", "'first'")),
]


@pytest.mark.parametrize(("kind", "facts"), UNCUTTABLE)
def test_what_cannot_be_cut_says_so(kind: Callable[[], nn.Module], facts: tuple[str, ...]) -> None:
    network = Network(kind().eval(), ("a",), ("first",))
    with raises(SplitError, *facts):
        network.split("first")
    with raises(SplitError, *facts):
        network.cuts(drawn_rows(), ["first"])


class Changing(Plain):
    """A number that is no tensor is frozen by tracing."""

    gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.gain


class Augmented(Plain):
    """Tracing takes `+=` for a sum that leaves the skip as it was."""

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(x)
        aside = skip.view(-1)
        aside += 1.0
        return self.second(self.first(skip) + skip)


@pytest.mark.parametrize("kind", [Changing, Augmented])
def test_parts_that_are_not_the_whole_are_noticed(kind: type[nn.Module]) -> None:
    """Whatever tracing misses is seen on the first real rows, before any number of it is used."""
    network = Network(kind().eval(), ("a",), ("first",))
    network.split("first")
    network.module.gain = 2.0
    with raises(SplitError, "'first'", "logits"):
        network.cuts(drawn_rows(), ["first"])


def test_a_cut_at_a_layer_that_is_no_tap_is_refused() -> None:
    with raises(TapError, "'second'", "known: first"):
        Network(Plain(), ("a",), ("first",)).split("second")
