"""Variational information distillation."""

import pytest
import torch
from stand_ins import Cast

from crossdistill import OutputSpec, Progress
from crossdistill.methods.vid import VID


def _scales(cast: Cast) -> list[torch.Tensor]:
    return [own for name, own in cast.method.named_parameters() if name.endswith("log_scale")]


def test_variances_start_where_they_should_and_learn() -> None:
    cast = Cast(VID())
    assert cast.weights() == {"task": 1.0, "vid/mm": 1.0}
    scales = _scales(cast)
    assert [len(scale) for scale in scales] == [2, 6], "one for each of the teacher's channels"
    for scale in scales:
        assert (torch.nn.functional.softplus(scale) + 1e-5).tolist() == pytest.approx([5.0] * len(scale))
    cast.value("vid/mm").sum().backward()
    assert all(scale.grad is not None and bool(scale.grad.abs().sum() > 0) for scale in scales)


def test_released_variances_never_move() -> None:
    cast = Cast(VID(train_variance=False))
    cast.value("vid/mm").sum().backward()
    assert all(scale.grad is None for scale in _scales(cast))


def test_the_right_mean_costs_the_entropy_alone() -> None:
    cast = Cast(VID(variance=1.0))
    with torch.no_grad():
        for own in cast.method.parameters():
            if own.ndim > 1:
                own.zero_()
    right = cast.step(progress=Progress()).terms["vid/mm"].value
    wanted = sum(0.5 * feature.square().flatten(1).mean(1) for feature in _pooled(cast))
    torch.testing.assert_close(right, wanted, rtol=1e-4, atol=1e-4)


def _pooled(cast: Cast) -> list[torch.Tensor]:
    """The teacher's maps at the student's sizes, where these are smaller."""
    first, second = cast.features("mm", "first", "second")
    return [torch.nn.functional.adaptive_avg_pool2d(first, (5, 4)), second]


def test_networks_without_maps_compare_vectors() -> None:
    flat = OutputSpec(logits=(4,), features={"a": (3,), "b": (5,)})
    assert [len(scale) for scale in _scales(Cast(VID(), {"flat": flat}))] == [5]
    assert Cast(VID(taps=("fc",), teacher_taps={"mm": ("end",)})).value("vid/mm").shape == (8,)
