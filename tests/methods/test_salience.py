"""MGDFR's salience: measured on a teacher in which we know what each unit carries."""

import pytest
import torch
from facts import raises
from stand_ins import SPEC, data_of
from torch import Tensor, nn

from crossdistill import Dataset, Network, OutputSpec, Signal, Stage
from crossdistill.bank.bank import BankSettings
from crossdistill.data.sampler import Order
from crossdistill.errors import ApplicabilityError
from crossdistill.methods.salience import Salience
from crossdistill.planning.sources import decide
from crossdistill.teacher import Filled, Live

STRENGTHS = (0.0, 3.0, 0.5, 1.0, 2.0)


class Known(nn.Module):
    """Five units, of which the logits read each with its own strength."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial
        self.units = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        units = self.units(x.view(-1, 5, 2, 1) if self.spatial else x[:, :5])
        pooled = units.mean(dim=(2, 3)) if self.spatial else units
        read = pooled * torch.tensor(STRENGTHS)
        # Four logits for five units: the last two share one.
        return torch.cat([read[:, :3], read[:, 3:].sum(1, keepdim=True)], dim=1)


def noise() -> Dataset:
    x = torch.randn(600, 10, generator=torch.Generator().manual_seed(0))
    return Dataset.from_arrays("noise", {"x": x}, torch.arange(600) % 4)


def cast(spatial: bool = False) -> tuple[Network, OutputSpec]:
    dataset = noise()
    network = Network(Known(spatial).eval(), ("x",), ("units",))
    return network, network.probe(dataset.example())


@pytest.mark.parametrize("spatial", [False, True])
def test_units_that_carry_the_agreement_are_salient(spatial: bool) -> None:
    network, spec = cast(spatial)
    dataset = noise()
    teacher = Live("mm", network, {Signal.LOGITS, Signal.cut("units")})
    student = Live("student", network)
    method = Salience(fraction=0.5, repeats=3).build(spec, {"mm": spec}, data_of())
    batches = [dataset.batch(part) for part in torch.arange(600).split(250)]
    method.measure(batches, student, {"mm": teacher})
    fill = method.get_submodule("fills.mm")
    salience = fill.get_buffer("salience")
    # The two agree entirely, so a unit's salience is what its permutation does to the logits: its strength squared.
    wanted = torch.tensor(STRENGTHS).square() / max(STRENGTHS) ** 2
    torch.testing.assert_close(salience, wanted, rtol=0.2, atol=0.02)
    assert fill.get_buffer("replaced").tolist() == [True, False, True, False, False]
    everything = dataset.batch(torch.arange(600))
    values = teacher(everything).cuts["units"].value
    torch.testing.assert_close(fill.get_buffer("mean"), values.mean(0))
    (filled,) = method.next_teachers({"mm": teacher}).values()
    assert isinstance(filled, Filled)
    assert filled.name == "mm@units"
    logits = filled(everything).need(Signal.LOGITS)
    whole = teacher(everything).need(Signal.LOGITS)
    torch.testing.assert_close(logits[:, [1, 3]], whole[:, [1, 3]])
    assert float(logits[:, [0, 2]].std(0).max()) < 1e-6


def test_the_released_code_fills_and_measures_nothing() -> None:
    network, spec = cast()
    dataset = noise()
    teacher = Live("mm", network, {Signal.LOGITS, Signal.cut("units")})
    method = Salience(fill="none").build(spec, {"mm": spec}, data_of())
    method.measure([], teacher, {"mm": teacher})
    (filled,) = method.next_teachers({"mm": teacher}).values()
    batch = dataset.batch(torch.arange(9))
    assert torch.equal(filled(batch).need(Signal.LOGITS), teacher(batch).need(Signal.LOGITS))


@pytest.mark.parametrize(("fill", "banked"), [("mean", True), ("batch", False), ("none", True)])
def test_a_teacher_filled_by_the_batch_is_not_banked(fill: str, banked: bool) -> None:
    network, spec = cast()
    dataset = noise()
    base = Live("mm", network)
    method = Salience.model_validate({"fill": fill}).build(spec, {"mm": spec}, data_of())
    teachers = method.next_teachers({"mm": base})
    order = Order(dataset.splits["train"], len(dataset.splits["train"]), 8, 0)
    needs = {"mm@units": frozenset({Signal.LOGITS})}
    stage = Stage.model_validate({"method": "kd", "epochs": 50})
    choices = decide(stage, Live("student", network, trained=True), teachers, needs, dataset, order, BankSettings())
    (choice,) = (one for one in choices if one.source == "mm@units")
    assert choice.banked == banked


def test_the_layer_is_the_last_one_unless_it_is_named() -> None:
    assert Salience().build(SPEC, {"a": SPEC}, data_of()).needs()["a"] == frozenset({Signal.LOGITS, Signal.cut("fc")})
    named = Salience(taps={"a": "late"}).build(SPEC, {"a": SPEC}, data_of())
    assert named.needs()["a"] == frozenset({Signal.LOGITS, Signal.cut("late")})
    with raises(ApplicabilityError, "'a'", "tap"):
        Salience().build(SPEC, {"a": OutputSpec(logits=(4,))}, data_of())
