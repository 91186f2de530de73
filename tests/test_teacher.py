"""Sources of signals: who computes for which rows, with or without gradient, whole, cut, masked or shuffled."""

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill import Batch, Network, OutputSpec, Signal
from crossdistill.errors import SplitError
from crossdistill.nets.mask import apply_mask, mask_for
from crossdistill.teacher import Live, Masked, Shuffled, Teacher
from crossdistill.testing import FakeTeacher, toy_dataset, toy_models, toy_network

SHAPES = {"first": (6,), "second": (2, 4)}


class Again(nn.Module):
    """Its first layer runs twice, so that it cannot be cut there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.second(self.first(torch.tanh(self.first(x))))


class Twofold(Again):
    """Traced well, but not what tracing took it for: parts and whole differ."""

    gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.gain)


def batch(present: Mapping[str, list[bool]] | None = None, rows: int = 6) -> Batch:
    source = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {name: torch.randn((rows, *shape), generator=source) for name, shape in SHAPES.items()}
    masks = {name: torch.tensor(mask) for name, mask in (present or {}).items()}
    for name, mask in masks.items():
        inputs[name][~mask] = torch.nan
    return Batch(inputs, torch.arange(rows), targets=torch.arange(rows) % 4, present=masks)


def live(reads: tuple[str, ...] = ("first",), signals: set[Signal] | None = None, *, trained: bool = False) -> Live:
    network = toy_network(reads)
    network.probe(batch())
    return Live("teacher", network, signals or {Signal.LOGITS}, trained=trained)


def of_module(module: nn.Module, tap: str = "first") -> Live:
    network = Network(module.eval(), ("first",), (tap,))
    network.probe(batch())
    return Live("teacher", network, {Signal.cut(tap)})


def test_all_sources_are_teachers() -> None:
    base = live()
    masked = Masked("teacher@hidden", base, {"hidden": mask_for((12,))})
    shuffled = Shuffled(base, torch.arange(6), lambda ids: batch().select(ids))
    fake = FakeTeacher("fake", OutputSpec(logits=(4,)))
    assert all(isinstance(one, Teacher) for one in (base, masked, shuffled, fake))


def test_a_network_without_sizes_is_refused() -> None:
    with raises(ValueError, "'teacher'", "probe"):
        Live("teacher", toy_network())


def test_what_is_asked_is_given_under_the_own_name() -> None:
    base = live()
    outputs = base.select({Signal.feature("hidden"), Signal.cut("joint")})(batch())
    assert outputs.source == "teacher"
    assert {"feature:hidden", "cut:joint"} <= set(outputs.given())
    assert set(base(batch()).features) == set()


@pytest.mark.parametrize("trained", [True, False])
def test_only_a_trained_network_has_gradient(trained: bool) -> None:
    base = live(trained=trained)
    assert base(batch()).need(Signal.LOGITS).requires_grad is trained
    assert base.select({Signal.LOGITS}).trained is trained
    with torch.no_grad():
        assert not base(batch()).need(Signal.LOGITS).requires_grad


def test_rows_without_the_modality_are_not_computed() -> None:
    present = {"first": [True, False, True, True, False, True], "second": [True, True, False, True, True, True]}
    for reads, wanted in ((("first",), [0, 2, 3, 5]), (("second",), [0, 1, 3, 4, 5]), (("first", "second"), [0, 3, 5])):
        outputs = live(reads)(batch(present))
        assert outputs.rows.tolist() == wanted
        assert outputs.need(Signal.LOGITS).shape == (len(wanted), 4)
        assert bool(outputs.need(Signal.LOGITS).isfinite().all())
    assert live(("first",))(batch()).rows is None


def test_when_everything_is_absent_nothing_runs_and_shapes_stand() -> None:
    base = live(("first",), {Signal.LOGITS, Signal.EMBEDDING, Signal.feature("hidden"), Signal.cut("joint")})
    runs = []
    base.network.module.register_forward_hook(lambda *_: runs.append(1))
    outputs = base(batch({"first": [False] * 6}))
    assert runs == []
    assert (outputs.need(Signal.LOGITS).shape, outputs.need(Signal.EMBEDDING).shape) == ((0, 4), (0, 6))
    assert outputs.need(Signal.feature("hidden")).shape == (0, 12)
    assert base.tail("joint")(outputs.cuts["joint"]).need(Signal.LOGITS).shape == (0, 4)


def test_rows_that_are_all_absent_give_zero_gradients_not_none() -> None:
    base = live(trained=True)
    with torch.no_grad():
        next(base.network.parameters()).fill_(torch.inf)
    base(batch({"first": [False] * 6})).need(Signal.LOGITS).sum().backward()
    gradients = [parameter.grad for parameter in base.network.parameters()]
    assert all(gradient is not None and bool((gradient == 0).all()) for gradient in gradients)


def test_gradient_reaches_a_mask_also_when_no_row_is_there() -> None:
    base = live(("first",), {Signal.cut("joint")})
    cut = base(batch({"first": [False] * 6})).cuts["joint"]
    mask = mask_for((12,))
    base.tail("joint")(cut.rewritten(apply_mask(cut.value, mask(cut.value)))).need(Signal.LOGITS).sum().backward()
    assert all(parameter.grad is not None for parameter in mask.parameters())


def test_a_tail_goes_on_from_a_rewritten_cut() -> None:
    base = live(("first", "second"), {Signal.cut("joint")})
    cut = base(batch()).cuts["joint"]
    wanted = base.network.edited(batch(), {"joint": lambda value: 3 * value})
    assert torch.equal(base.tail("joint")(cut.rewritten(3 * cut.value)).need(Signal.LOGITS), wanted.need(Signal.LOGITS))


@pytest.mark.parametrize("kind", [Again, Twofold])
def test_what_cannot_be_cut_runs_whole_again_and_says_so_once(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    module = kind()
    base = of_module(module)
    if isinstance(module, Twofold):
        base.network.split("first")
        module.gain = 2.0
    with caplog.at_level(logging.WARNING, "crossdistill"):
        for _ in range(3):
            cut = base.select({Signal.cut("first")})(batch()).cuts["first"]
            found = base.tail("first")(cut.rewritten(0.5 * cut.value)).need(Signal.LOGITS)
    wanted = base.network.edited(batch(), {"first": lambda value: 0.5 * cut.value}).need(Signal.LOGITS)
    assert torch.equal(found, wanted)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "runs the whole network" in caplog.text


def test_the_fallback_carries_gradient_to_the_cut() -> None:
    base = of_module(Again())
    cut = base(batch()).cuts["first"]
    value = cut.value.detach().requires_grad_()
    base.tail("first")(cut.rewritten(value)).need(Signal.LOGITS).sum().backward()
    assert value.grad is not None
    assert bool((value.grad != 0).any())


def test_the_fallback_reads_present_rows_alone() -> None:
    base = of_module(Again())
    cut = base(batch({"first": [True, False, False, True, False, False]})).cuts["first"]
    assert cut.value.shape == (2, 6)
    assert bool(base.tail("first")(cut).need(Signal.LOGITS).isfinite().all())


def masks(*taps: str) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {tap: mask_for((12,)).eval() for tap in taps}


def test_a_masked_teacher_is_the_edited_network() -> None:
    base, own = live(("first",)), masks("joint")
    found = Masked("teacher@joint", base, own)(batch())
    wanted = base.network.edited(batch(), {"joint": lambda value: apply_mask(value, own["joint"](value))})
    assert found.source == "teacher@joint"
    assert torch.allclose(found.need(Signal.LOGITS), wanted.need(Signal.LOGITS), atol=1e-6)
    assert not torch.allclose(found.need(Signal.LOGITS), base(batch()).need(Signal.LOGITS), atol=1e-3)
    assert not found.need(Signal.LOGITS).requires_grad


def test_stacked_masks_act_each_on_what_those_before_left() -> None:
    base, own = live(("first",)), masks("joint", "hidden")
    found = Masked("stacked", base, own)(batch()).need(Signal.LOGITS)
    module = base.network.module
    with torch.no_grad():
        joint = torch.relu(module.inputs[0](batch().inputs["first"]))
        hidden = module.hidden(apply_mask(joint, own["joint"](joint)))
        by_hand = module.logits(torch.relu(apply_mask(hidden, own["hidden"](hidden))))
    assert torch.allclose(found, by_hand, atol=1e-6)
    single = Masked("single", base, {"hidden": own["hidden"]})(batch()).need(Signal.LOGITS)
    assert not torch.allclose(found, single, atol=1e-4)


@pytest.mark.parametrize("taps", [("joint",), ("joint", "hidden")])
@pytest.mark.parametrize("there", [[True, False, True, True, False, True], [False] * 6])
def test_a_masked_teacher_reads_present_rows_alone(taps: tuple[str, ...], there: list[bool]) -> None:
    base = live(("first",))
    outputs = Masked("masked", base, masks(*taps))(batch({"first": there}))
    assert outputs.source == "masked"
    assert outputs.rows.tolist() == [row for row, seen in enumerate(there) if seen]
    assert bool(outputs.need(Signal.LOGITS).isfinite().all())
    whole = Masked("masked", base, masks(*taps))(batch()).need(Signal.LOGITS)
    assert torch.allclose(outputs.need(Signal.LOGITS), whole[outputs.rows], atol=1e-6)


def test_a_masked_teacher_over_a_network_that_cannot_be_cut() -> None:
    base = of_module(Again())
    torch.manual_seed(0)
    mask = mask_for((6,))
    found = Masked("masked", base, {"first": mask})(batch()).need(Signal.LOGITS)
    with torch.no_grad():
        value = base(batch()).cuts["first"].value
        wanted = base.network.edited(batch(), {"first": lambda _: apply_mask(value, mask(value))})
    assert torch.allclose(found, wanted.need(Signal.LOGITS))


def test_a_masked_teacher_is_not_cut_again() -> None:
    masked = Masked("teacher@joint", live(), masks("joint"))
    assert masked.select({Signal.LOGITS}) is masked
    assert masked.spec.features == {}
    with raises(SplitError, "'teacher@joint'", "'teacher'", "'hidden'"):
        masked.tail("hidden")


def test_the_shuffled_control_looks_at_other_rows_whole() -> None:
    data = toy_dataset(rows=20)
    network = toy_models(data)["teacher-0"]
    network.probe(data.example())
    partner = torch.arange(20).roll(3)
    control = Shuffled(Live("teacher", network), partner, data.batch)
    rows = torch.tensor([4, 9, 0])
    looked_at = control.sees(data.batch(rows, total_rows=99))
    assert looked_at.ids.tolist() == partner[rows].tolist()
    assert looked_at.total_rows == 99
    assert looked_at.targets is not None
    assert torch.equal(looked_at.targets, data.targets[partner[rows]])
    wanted = network(data.batch(partner[rows])).need(Signal.LOGITS)
    assert torch.equal(control(data.batch(rows)).need(Signal.LOGITS), wanted)
    asked = control.select({Signal.feature("hidden")})
    assert isinstance(asked, Shuffled)
    assert torch.equal(asked.sees(data.batch(rows)).ids, looked_at.ids)


def test_a_fake_teacher_gives_the_same_for_an_id_wherever_it_stands() -> None:
    spec = OutputSpec(logits=(4,), embedding=(5,), features={"conv": (2, 3, 3)})
    fake = FakeTeacher(
        "fake", spec, signals={Signal.LOGITS, Signal.EMBEDDING, Signal.feature("conv"), Signal.cut("conv")}
    )
    whole, part = fake(batch()), fake(batch().select(torch.tensor([4, 1])))
    for signal, shape in ((Signal.LOGITS, (4,)), (Signal.EMBEDDING, (5,)), (Signal.feature("conv"), (2, 3, 3))):
        assert whole.need(signal).shape == (6, *shape)
        assert torch.equal(part.need(signal), whole.need(signal)[[4, 1]])
        assert len(whole.need(signal).flatten(1).unique(dim=0)) == 6, "no two rows are alike"
    assert not torch.equal(FakeTeacher("other", spec)(batch()).need(Signal.LOGITS), whole.need(Signal.LOGITS))
    assert torch.equal(FakeTeacher("fake", spec)(batch()).need(Signal.LOGITS), whole.need(Signal.LOGITS))
    go_on = fake.tail("conv")
    assert torch.equal(
        go_on(part.cuts["conv"]).need(Signal.LOGITS), go_on(whole.cuts["conv"]).need(Signal.LOGITS)[[4, 1]]
    )


def test_a_fake_teacher_remembers_what_it_was_asked_and_gives_rows_of_your_own() -> None:
    fake = FakeTeacher("fake", OutputSpec(logits=(4,), features={"conv": (3,)}), ("first",))
    asked = fake.select({Signal.feature("conv")})
    outputs = asked(batch({"first": [True, False, True, False, False, True]}))
    assert outputs.given() == ["feature:conv"]
    assert fake.record.signals == [frozenset({Signal.feature("conv")})]
    assert [ids.tolist() for ids in fake.record.ids] == [[0, 2, 5]]
    own = torch.randn(6, 4)
    fake = FakeTeacher("fake", OutputSpec(logits=(4,)), given={Signal.LOGITS: own})
    assert torch.equal(fake(batch().select(torch.tensor([5, 2]))).need(Signal.LOGITS), own[[5, 2]])
