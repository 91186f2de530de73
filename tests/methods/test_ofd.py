"""Overhaul of feature distillation: margins, weights by depth."""

import pytest
import torch
from stand_ins import Cast, rows_of
from torch import nn

from crossdistill import DataSpec, Network, Progress, Signal
from crossdistill.losses import normal_margin, partial_distance
from crossdistill.losses.spatial import same_space
from crossdistill.methods.ofd import OFD
from crossdistill.teacher import Live, Shuffled, Teacher
from crossdistill.testing import toy_dataset


def test_margins_are_measured_where_no_batch_norm_tells() -> None:
    cast = Cast(OFD())
    cast.method.measure([rows_of()], cast.student, cast.teachers)
    (first,) = cast.features("mm", "first")
    wanted = [float(channel[channel < 0].mean()) for channel in first.transpose(0, 1)]
    margins = [value for name, value in cast.method.state_dict().items() if name.endswith("margin")]
    assert margins[0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_terms_by_hand() -> None:
    cast = Cast(OFD())
    cast.method.measure([rows_of()], cast.student, cast.teachers)
    assert cast.weights() == {"task": 1.0, "ofd/mm": 0.001}
    connectors = next(iter(cast.method.children())).children()
    total = torch.zeros(8)
    stages = zip(cast.features("student", "early", "late"), cast.features("mm", "first", "second"), strict=True)
    for connector, (mine, theirs), factor in zip(connectors, stages, (0.5, 1.0), strict=True):
        regressed = connector(mine, lambda rows: rows)
        total = total + factor * partial_distance(*same_space(regressed, theirs), connector.margin)
    torch.testing.assert_close(cast.value("ofd/mm"), total)


class Normed(nn.Module):
    """One convolution with its batch norm, in a block and bare."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.bare = nn.Conv2d(3, 2, 1)
        self.out = nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.bare(self.block(x).relu()).mean(dim=(2, 3)))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("margins", ["norm", "measured"])
def test_margins_of_a_real_teacher(margins: str, shuffled: bool) -> None:
    dataset = toy_dataset({"first": (1, 6, 6)})
    network = Network(Normed().eval(), ("first",), ("block", "bare"))
    norm = network.module.block[1]
    nn.init.normal_(norm.bias)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    spec = network.probe(dataset.example())
    teacher: Teacher = Live("mm", network, {Signal.feature("block"), Signal.feature("bare")})
    if shuffled:
        teacher = Shuffled(teacher, torch.arange(len(dataset)), dataset.batch)
    method = OFD.model_validate({"margins": margins}).build(spec, {"mm": spec}, DataSpec(8, 4))
    batch = dataset.batch(torch.arange(40))
    method.measure([batch], teacher, {"mm": teacher})
    block, bare = (value for name, value in method.state_dict().items() if name.endswith("margin"))
    given = teacher(batch)
    measured = [
        torch.stack([c[c < 0].mean() if bool((c < 0).float().mean() > 0.001) else -3 * c.std(correction=0) for c in x])
        for x in (given.features[tap].transpose(0, 1).flatten(1) for tap in ("block", "bare"))
    ]
    torch.testing.assert_close(block, normal_margin(norm.bias, norm.weight) if margins == "norm" else measured[0])
    torch.testing.assert_close(bare, measured[1])
    step = method(batch, teacher, {"mm": teacher}, Progress())
    assert bool(step.terms["ofd/mm"].value.isfinite().all())
