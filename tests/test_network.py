"""Any module, untouched: how inputs reach it, what its result means, what its taps show, and what it says of faults."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from facts import raises, warned
from torch import Tensor, nn

from crossdistill import Batch, Signal
from crossdistill.errors import SettingError, ShapeError, SignalError, TapError
from crossdistill.network import Network, default_give


class Two(nn.Module):
    """Two inputs, two layers, an activation in place between them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
        self.unused = nn.Linear(1, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.act(self.left(left) - self.right(right)))


class Gives(nn.Module):
    """Gives a result of any kind."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


def batch(**inputs: Any) -> Batch:
    return Batch(inputs or {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}, torch.arange(4))


def test_inputs_reach_the_module_in_the_order_of_reads() -> None:
    module, rows = Two(), batch()
    network = Network(module, ("a", "b"))
    assert torch.equal(network(rows).need(Signal.LOGITS), module(rows.inputs["a"], rows.inputs["b"]))
    with pytest.raises(ShapeError):
        Network(module, ("b", "a"))(rows)
    assert Network(nn.Linear(3, 2), "a").reads == ("a",)


def test_an_input_of_several_tensors_arrives_by_name() -> None:
    class Text(nn.Module):
        def forward(self, *, tokens: Tensor, mask: Tensor) -> Tensor:
            return (tokens * mask).sum(1, keepdim=True)

    rows = batch(text={"mask": torch.ones(4, 3), "tokens": torch.arange(12.0).view(4, 3)})
    assert Network(Text(), ("text",))(rows).need(Signal.LOGITS).flatten().tolist() == [3, 12, 21, 30]


def test_call_says_how_a_batch_reaches_the_module() -> None:
    zeros = Network(
        Two(), ("a", "b"), input_adapter=lambda rows: ((rows.inputs["a"],), {"right": 0 * rows.inputs["b"]})
    )
    rows = batch()
    wanted = zeros.module(rows.inputs["a"], torch.zeros(4, 2))
    assert torch.equal(zeros(rows).need(Signal.LOGITS), wanted)


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Foreign:
    """No mapping: what it means is for its owner to say."""

    logits = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("make", "logits", "embedding"),
    [
        (lambda x: x, 1.0, None),
        (lambda x: (x,), 1.0, None),
        (lambda x: (x, 2 * x), 1.0, 2.0),
        (lambda x: (x, 2 * x, "more"), 1.0, 2.0),
        (lambda x: {"logits": x}, 1.0, None),
        (lambda x: {"logits": x, "embedding": 2 * x}, 1.0, 2.0),
        (lambda x: {"logits": x, "pooler_output": 2 * x, "last_hidden_state": 9 * x[:, None]}, 1.0, 2.0),
        (lambda x: {"last_hidden_state": torch.stack([x, 3 * x], 1)}, None, 2.0),
        (lambda x: ModelOutput(logits=x, pooler_output=None), 1.0, None),
        (lambda x: ModelOutput(logits=x, pooler_output=2 * x), 1.0, 2.0),
        (lambda x: ModelOutput(last_hidden_state=torch.stack([x, 3 * x], 1)), None, 2.0),
    ],
)
def test_usual_results_are_understood(make: Any, logits: float | None, embedding: float | None) -> None:
    network, rows = Network(Gives(make), ("a",)), batch()
    plain = network.module.layer(rows.inputs["a"])
    outputs = network(rows)
    for found, factor in ((outputs.logits, logits), (outputs.embedding, embedding)):
        assert (found is None) == (factor is None)
        if found is not None and factor is not None:
            assert torch.allclose(found, factor * plain)


@pytest.mark.parametrize("make", [lambda x: "text", lambda x: None, lambda x: {"scores": x}, lambda x: Foreign()])
def test_other_results_ask_for_give(make: Any) -> None:
    with raises(SignalError, "'Gives'", "output_adapter="):
        Network(Gives(make), ("a",))(batch())


def test_give_reads_any_result_and_the_default_names_whose_it_was() -> None:
    def give(result: Any) -> Mapping[str, Tensor | None]:
        return {"logits": result["scores"]}

    network = Network(Gives(lambda x: {"scores": x}), ("a",), output_adapter=give)
    assert network(batch()).need(Signal.LOGITS).shape == (4, 4)
    with raises(SignalError, "'mine'"):
        default_give(3, "mine")


def test_taps_show_what_came_out_of_a_layer() -> None:
    network, rows = Network(Two(), ("a", "b"), ("left", "head.0", "head")), batch()
    found = network(rows, {Signal.LOGITS, Signal.feature("left"), Signal.feature("head.0"), Signal.feature("head")})
    assert torch.equal(found.features["left"], network.module.left(rows.inputs["a"]))
    assert torch.equal(found.features["head"], found.need(Signal.LOGITS))
    assert torch.equal(network.module.head[1](found.features["head.0"]), found.need(Signal.LOGITS))
    assert not any(module._forward_hooks for module in network.modules()), "hooks are gone afterwards"


def test_a_tap_that_the_next_layer_overwrites_is_still_what_the_layer_gave() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.second = nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(x)))

    network, rows = Network(InPlace(), ("a",), ("first",)), batch()
    for _ in range(2):
        found = network(rows, {Signal.LOGITS, Signal.feature("first")}).features["first"]
        assert torch.equal(found, network.module.first(rows.inputs["a"]))
        assert bool((found < 0).any())


def test_hooks_go_away_when_the_module_fails() -> None:
    network = Network(Two(), ("a", "b"), ("left",))
    with pytest.raises(ShapeError):
        network(batch(a=torch.randn(4, 3), b=torch.randn(4, 7)), {Signal.feature("left")})
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("tap", ["lefft", "", "head.7", "module"])
def test_a_tap_that_is_no_layer_is_refused_at_once(tap: str) -> None:
    with raises(TapError, f"'{tap}'", "known: act, head"):
        Network(Two(), ("a", "b"), (tap,))


def test_layers_that_cannot_be_tapped_are_said_with_the_nearest() -> None:
    with raises(TapError, "'left'"):
        Network(Two(), ("a", "b"), ("lefft",))
    network = Network(Two(), ("a", "b"), ("left",))
    with raises(TapError, "'right'", "known: left"):
        network(batch(), {Signal.feature("right")})
    with raises(TapError, "'unused'"):
        Network(Two(), ("a", "b"), ("unused",))(batch(), {Signal.feature("unused")})


def test_a_tap_gives_one_tensor() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x[None])[0][0]

    with raises(TapError, "'cell'", "tuple"):
        Network(Recurrent(), ("a",), ("cell",))(batch(), {Signal.feature("cell")})


def test_a_refused_input_and_a_missing_modality_say_who_reads_them() -> None:
    with raises(ShapeError, "'Two'", "a, b", "(4, 7), (4, 2)"):
        Network(Two(), ("a", "b"))(batch(a=torch.randn(4, 7), b=torch.randn(4, 2)))
    with raises(SignalError, "Two", "'c'", "known: a, b"):
        Network(Two(), ("a", "c"))(batch())


def test_sizes_are_measured_without_a_trace() -> None:
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 5))
    network = Network(module, ("a",), ("0", "1")).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    spec = network.probe(batch())
    assert (spec.logits, spec.embedding, dict(spec.features)) == ((5,), None, {"0": (6,), "1": (6,)})
    assert network.spec is spec
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_edits_replace_the_value_at_a_tap() -> None:
    network, rows = Network(Two(), ("a", "b"), ("left", "head.0")), batch()
    found = network.edited(rows, {"head.0": lambda value: 2 * value}).need(Signal.LOGITS)
    inner = network(rows, {Signal.feature("head.0")}).features["head.0"]
    assert torch.equal(found, network.module.head[1](2 * inner))
    with pytest.raises(TapError):
        network.edited(rows, {"right": lambda value: value})
    assert not any(module._forward_hooks for module in network.modules())


def test_the_old_names_of_the_adapters_work_with_a_warning() -> None:
    rows = batch()
    with warned(DeprecationWarning, "input_adapter"):
        old = Network(nn.Linear(3, 4), "a", call=lambda batch: ((batch.inputs["a"] * 2,), {}))
    with warned(DeprecationWarning, "output_adapter"):
        Network(nn.Linear(3, 4), "a", give=lambda result: {"logits": result})
    with raises(SettingError, "input_adapter"):
        Network(nn.Linear(3, 4), "a", call=lambda batch: ((), {}), input_adapter=lambda batch: ((), {}))
    new = Network(old.module, "a", input_adapter=lambda batch: ((batch.inputs["a"] * 2,), {}))
    assert torch.equal(old(rows).need(Signal.LOGITS), new(rows).need(Signal.LOGITS))
