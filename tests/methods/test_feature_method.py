"""Which layers meet: chosen from sizes, or named; and what is refused."""

from typing import Any

import pytest
import torch
from facts import raises

from crossdistill.errors import ApplicabilityError, SettingError, SignalError
from crossdistill.method import STUDENT, DataSpec
from crossdistill.methods import AT, METHODS, PKT, SP
from crossdistill.methods.feature_method import shared_features
from crossdistill.methods.layer_choice import LayerChoice, Pair, chosen
from crossdistill.methods.loss_weights import AlphaDecay, Warmup
from crossdistill.outputs import Outputs, OutputSpec, Signal

# As LeNet5 shows itself: maps, a map of one position, vectors, the logits under a name.
LENET = OutputSpec(
    logits=(10,),
    features={"conv1": (6, 28, 28), "conv2": (16, 10, 10), "conv3": (120, 1, 1), "fc1": (84,), "fc2": (10,)},
)
SOUND = OutputSpec(logits=(10,), features={"a": (15, 156), "b": (32, 52), "c": (64, 17), "d": (320,)})
VECTORS = OutputSpec(logits=(10,), features={"joint": (596,), "fc1": (298,)})
EMBEDS = OutputSpec(logits=(10,), embedding=(768,), features={"last": (12, 4, 4)})


@pytest.mark.parametrize(
    ("choice", "spec", "wanted"),
    [
        ("maps", LENET, ["conv1", "conv2"]),
        ("maps", SOUND, ["a", "b", "c"]),
        ("maps", VECTORS, []),
        ("last", LENET, ["conv2"]),
        ("last", VECTORS, ["fc1"]),
        ("vector", LENET, ["fc1"]),
        ("vector", SOUND, ["d"]),
        ("hints", LENET, ["conv2", "fc1"]),
        ("hints", VECTORS, ["joint", "fc1"]),
        ("hints", EMBEDS, ["last"]),
        ("all", LENET, ["conv1", "conv2", "conv3", "fc1"]),
        ("all", OutputSpec(logits=(10,)), []),
    ],
)
def test_layers_are_chosen_by_their_sizes(choice: LayerChoice, spec: OutputSpec, wanted: list[str]) -> None:
    assert [signal.tap for signal in chosen(choice, spec)] == wanted


def test_an_embedding_is_the_vector_where_there_is_one() -> None:
    assert chosen("vector", EMBEDS) == {Signal.EMBEDDING: (768,)}
    assert chosen("last", EMBEDS) == {Signal.feature("last"): (12, 4, 4)}


def test_the_deepest_meet_where_one_network_has_more() -> None:
    pairs = AT().pairs("maps", LENET, {"sound": SOUND})["sound"]
    assert [(pair.student.tap, pair.teacher.tap) for pair in pairs] == [("conv1", "b"), ("conv2", "c")]
    assert (pairs[0].mine, pairs[0].theirs) == ((6, 28, 28), (32, 52))


def test_named_layers_are_taken_as_they_are_named() -> None:
    config = AT(taps=("conv2", "conv1"), teacher_taps={"sound": ("a", "c")})
    pairs = config.pairs("maps", LENET, {"sound": SOUND, "other": LENET})
    assert [(pair.student.tap, pair.teacher.tap) for pair in pairs["sound"]] == [("conv2", "a"), ("conv1", "c")]
    assert [pair.teacher.tap for pair in pairs["other"]] == ["conv1", "conv2"]


def test_a_method_asks_for_the_layers_that_meet() -> None:
    method = AT().build(LENET, {"sound": SOUND}, DataSpec(8, 10))
    assert method.needs() == {
        STUDENT: frozenset({Signal.LOGITS, Signal.feature("conv1"), Signal.feature("conv2")}),
        "sound": frozenset({Signal.feature("b"), Signal.feature("c")}),
    }
    assert PKT().build(LENET, {"big": EMBEDS}, DataSpec(8, 10)).needs()["big"] == frozenset({Signal.EMBEDDING})
    assert SP().build(VECTORS, {"big": EMBEDS}, DataSpec(8, 10)).needs()["big"] == frozenset({Signal.feature("last")})


@pytest.mark.parametrize(
    ("config", "student", "teachers", "facts"),
    [
        (AT(), LENET, {}, ("at", "teacher")),
        (AT(), LENET, {"mm": VECTORS}, ("at", 1, "'mm'", 0, "joint (596,)")),
        (AT(), OutputSpec(logits=(10,)), {"mm": LENET}, ("student", 0, "none")),
        (AT(taps=("fc1",)), LENET, {"mm": LENET}, ("at", "student", "fc1 (84,)")),
        (AT(taps=()), LENET, {"mm": LENET}, ("student", "none")),
    ],
)
def test_what_cannot_apply_is_refused_with_the_reason(
    config: AT, student: OutputSpec, teachers: dict[str, OutputSpec], facts: tuple[object, ...]
) -> None:
    with raises(ApplicabilityError, *facts):
        config.pairs("maps", student, teachers)


def test_wrong_names_are_refused_with_the_nearest() -> None:
    with raises(SignalError, "student", "'conv4'"):
        AT(taps=("conv4",)).pairs("maps", LENET, {"mm": LENET})
    with raises(SettingError, "at", "teacher_taps", "'nm'", "'mm'"):
        AT(teacher_taps={"nm": ("conv1",)}).pairs("maps", LENET, {"mm": LENET})
    with raises(SettingError, 2, "student", 1, "'mm'"):
        AT(taps=("conv1", "conv2"), teacher_taps={"mm": ("conv1",)}).pairs("maps", LENET, {"mm": LENET})


def test_features_meet_on_the_rows_that_both_saw() -> None:
    pair = Pair(Signal.feature("x"), Signal.EMBEDDING, (2,), (3,))
    mine, theirs = torch.randn(3, 2, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    student = Outputs("student", features={"x": mine}, rows=torch.tensor([0, 2, 5]))
    teacher = Outputs("teacher", embedding=theirs, rows=torch.tensor([1, 5]))
    (one,), (other,), rows = shared_features([pair], student, teacher)
    assert rows.tolist() == [5]
    assert torch.equal(one, mine[2:])
    assert torch.equal(other, theirs[1:])
    assert (one.requires_grad, other.requires_grad) == (True, False)


def test_weights_of_both_schedules() -> None:
    assert [AlphaDecay().at(epoch) for epoch in (0, 29, 30, 60)] == [
        (0.5, 0.5),
        (0.5, 0.5),
        (0.75, 0.25),
        (0.875, 0.125),
    ]
    assert AlphaDecay(decay_every=None, alpha=0.9).at(99) == (pytest.approx(0.1), 0.9)
    assert AlphaDecay(fixed=(0.1, 9.0)).at(40) == (0.1, 9.0)
    assert Warmup(weight=4.0, weight_task=0.5).at(0) == (0.5, 4.0)
    assert [Warmup(weight=4.0, warm_up=20).at(epoch)[1] for epoch in (0, 9, 19, 99)] == [0.2, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "loss_weights")])
def test_settings_have_their_schedules_fields_with_its_defaults(name: str) -> None:
    """A field of the same name has the same meaning, and reaches the schedule."""
    config: Any = METHODS[name].model_construct()
    weights = config.loss_weights()
    given = {field: getattr(config, field) for field in type(weights).__dataclass_fields__}
    assert weights == type(weights)(**given)
    shared = {"decay", "decay_every", "fixed", "alpha"} if isinstance(weights, AlphaDecay) else set()
    assert {field: given[field] for field in shared} == {field: getattr(AlphaDecay(), field) for field in shared}
