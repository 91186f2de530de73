"""What a network gives, and for which rows: two sources meet on the rows that both saw."""

import pytest
import torch
from facts import raises

from crossdistill.errors import SignalError
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal, aligned, spread


def seen(name: str, rows: list[int] | None, number: int = 6) -> Outputs:
    """Logits that say whose they are and of which row: (R, 2)."""
    index = torch.arange(number) if rows is None else torch.tensor(rows, dtype=torch.int64)
    logits = torch.stack([torch.full((len(index),), float(len(name))), index.float()], 1)
    return Outputs(name, logits=logits, rows=None if rows is None else index)


def test_wants_are_names_that_can_be_compared() -> None:
    assert (str(Signal.LOGITS), str(Signal.feature("fc1"))) == ("logits", "feature:fc1")
    assert Signal.feature("fc1") == Signal.feature("fc1") != Signal.cut("fc1")
    assert sorted({Signal.feature("b"), Signal.LOGITS, Signal.feature("a")})[0] == Signal.feature("a")


def test_sizes_name_what_is_missing() -> None:
    spec = OutputSpec(logits=(10, 4, 4), features={"fc1": (32,), "conv1": (8, 4, 4)})
    assert (spec.classes, spec.feature("fc1", "teacher 'a'")) == (10, (32,))
    with raises(SignalError, "'a'", "'fc2'", "'fc1'"):
        spec.feature("fc2", "teacher 'a'")
    with raises(SignalError, "logits"):
        assert OutputSpec(embedding=(4,)).classes


def test_what_is_needed_comes_or_its_absence_is_explained() -> None:
    cut = Cut(torch.ones(2, 3), (torch.zeros(2),))
    outputs = Outputs("mm", embedding=torch.zeros(2, 4), features={"fc1": torch.ones(2, 5)}, cuts={"conv": cut})
    assert (outputs.need(Signal.EMBEDDING).shape, outputs.need(Signal.feature("fc1")).shape) == ((2, 4), (2, 5))
    assert outputs.need(Signal.cut("conv")) is cut.value
    for signal in (Signal.LOGITS, Signal.feature("conv"), Signal.cut("fc1")):
        with raises(SignalError, "'mm'", signal, "embedding, feature:fc1, cut:conv"):
            outputs.need(signal)
    with raises(SignalError, "nothing"):
        Outputs("mm").need(Signal.LOGITS)
    cut = Cut(torch.ones(2, 3), (torch.zeros(2),))
    assert cut.rewritten(cut.value * 2).context is cut.context
    assert cut.value.sum() == 6


def test_targets_of_the_rows_that_were_seen() -> None:
    targets = torch.arange(6) * 10
    assert seen("a", None).of(targets).tolist() == targets.tolist()
    assert seen("a", [1, 4]).of(targets).tolist() == [10, 40]


@pytest.mark.parametrize(
    ("left", "right", "rows"),
    [
        (None, None, None),
        (None, [1, 4, 5], [1, 4, 5]),
        ([0, 2], None, [0, 2]),
        ([0, 1, 3, 5], [1, 2, 3], [1, 3]),
        ([0, 1], [4, 5], []),
        ([], [4, 5], []),
    ],
)
def test_two_sources_meet_on_the_rows_of_both(
    left: list[int] | None, right: list[int] | None, rows: list[int] | None
) -> None:
    mine, theirs, common = aligned(seen("a", left), seen("bb", right))
    wanted = list(range(6)) if rows is None else rows
    assert mine[:, 0].tolist() == [1.0] * len(wanted)
    assert theirs[:, 0].tolist() == [2.0] * len(wanted)
    assert mine[:, 1].tolist() == theirs[:, 1].tolist() == [float(row) for row in wanted]
    assert (None if common is None else common.tolist()) == rows


def test_spread_lays_out_rows_and_says_which_were_seen() -> None:
    whole, mask = spread(seen("a", [1, 4]), 6)
    assert mask.tolist() == [False, True, False, False, True, False]
    assert whole[:, 1].tolist() == [0, 1, 0, 0, 4, 0]
    whole, mask = spread(seen("a", None), 6)
    assert mask.all()
    assert whole[:, 1].tolist() == [0, 1, 2, 3, 4, 5]


def test_gradient_flows_through_a_spread_to_its_own_rows_and_dense_logits_are_spread_too() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    whole, _ = spread(Outputs("a", logits=logits, rows=torch.tensor([0, 3])), 5)
    whole[:3].sum().backward()
    assert logits.grad.tolist() == [[1.0] * 3, [0.0] * 3]
    whole, mask = spread(Outputs("a", logits=torch.ones(1, 3, 2, 2), rows=torch.tensor([2])), 3)
    assert whole.shape == (3, 3, 2, 2)
    assert mask.tolist() == [False, False, True]


def test_detached_outputs_are_cut_off_everywhere() -> None:
    value = torch.ones(2, 3, requires_grad=True) * 2
    whole = Outputs("a", value, value, {"fc1": value}, {"fc1": Cut(value, (value,))}, rows=torch.tensor([0, 1]))
    cut_off = whole.detached()
    found = [
        cut_off.need(signal) for signal in (Signal.LOGITS, Signal.EMBEDDING, Signal.feature("fc1"), Signal.cut("fc1"))
    ]
    assert not any(tensor.requires_grad for tensor in found)
    assert all(torch.equal(tensor, value) for tensor in found)
    assert cut_off.rows is whole.rows
