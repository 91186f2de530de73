"""Sizes and arithmetic of the gates."""

import pytest
import torch
from torch.nn import functional

from crossdistill.nets import GateNet, GateNetDense


@pytest.mark.parametrize(
    ("gate", "classes", "parameters"),
    [(GateNet, 10, 304), (GateNet, 8, 212), (GateNet, 141, 41_176), (GateNetDense, 41, 4_596)],
)
def test_published_sizes(gate: type[GateNet] | type[GateNetDense], classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in gate(classes, 4).parameters()) == parameters


def test_the_released_gate_is_affine_and_the_default_one_is_not() -> None:
    first, second = torch.randn(2, 5, 10, dtype=torch.float64) * 3
    affine, curved = GateNet(10, 4, activation=False).double(), GateNet(10, 4).double()
    curved.load_state_dict(affine.state_dict())
    torch.testing.assert_close(affine((first + second) / 2), (affine(first) + affine(second)) / 2)
    assert float((curved((first + second) / 2) - (curved(first) + curved(second)) / 2).detach().abs().max()) > 1e-3
    torch.testing.assert_close(curved(first), curved.fc2(curved.fc1(first).clamp(min=0)))


def test_the_dense_gate_step_by_step() -> None:
    gate = GateNetDense(3, 5).double()
    point, depthwise = gate.conv_point, gate.conv_depthwise
    assert depthwise.bias is not None
    logits = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    wide = torch.einsum("oi,bihw->bohw", point.weight[:, :, 0, 0], logits)
    wide = functional.pad((wide + point.bias[:, None, None]).clamp(min=0), (1, 1, 1, 1))
    pooled = torch.zeros(2, 6, dtype=torch.float64)
    for h in range(0, 9, 2):
        for w in range(0, 7, 2):
            patch = wide[:, :, h : h + 3, w : w + 3]
            value = (patch * depthwise.weight[:, 0]).sum((2, 3)) + depthwise.bias
            pooled += value.clamp(min=0) / (5 * 4)
    torch.testing.assert_close(gate(logits), gate.fc(pooled))
