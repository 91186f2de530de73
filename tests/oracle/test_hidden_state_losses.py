"""Losses on hidden states, against values computed by hand and by plain formulas; padding never counts."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crossdistill.losses.hidden_states import (
    HiddenLoss,
    at_frame_rate,
    barlow_distance,
    hidden_state_distance,
    pooled_frames,
    valid_frames,
)


def _states(rows: int = 3, layers: int = 2, frames: int = 5, width: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, layers, frames, width), torch.randn(rows, layers, frames, width)


def test_equal_states_leave_the_angle_alone() -> None:
    states, _ = _states()
    distance = hidden_state_distance(states, states)
    assert torch.allclose(distance, torch.full((3, 2), math.log(1 + math.exp(-1))), atol=1e-5)
    assert math.log(1 + math.exp(-1)) == pytest.approx(0.31326, abs=1e-5)


def test_the_mean_over_rows_and_layers_is_the_published_one() -> None:
    mine, theirs = _states()
    published = (
        functional.l1_loss(mine, theirs) - functional.logsigmoid(functional.cosine_similarity(mine, theirs, -1)).mean()
    )
    assert torch.allclose(hidden_state_distance(mine, theirs).mean(), published)
    plain = hidden_state_distance(mine, theirs, kind="l2", cosine=0.0)
    assert torch.allclose(plain.mean(), functional.mse_loss(mine, theirs))


@pytest.mark.parametrize("kind", ["l1", "l2", "usad"])
def test_garbage_in_padded_frames_changes_no_bit(kind: HiddenLoss) -> None:
    mine, theirs = _states()
    valid = valid_frames(torch.tensor([5, 2, 0]), 5)
    there = valid[:, None, :, None]
    results = []
    for fill in (0.0, 7.0, math.nan):
        prediction = mine.masked_fill(~there, fill).requires_grad_()
        distance = hidden_state_distance(prediction, theirs.masked_fill(~there, fill), valid, kind)
        (gradient,) = torch.autograd.grad(distance.sum(), prediction)
        results.append((distance, gradient))
        assert not distance[2].any()
    for distance, gradient in results[1:]:
        assert torch.equal(distance, results[0][0])
        assert torch.equal(gradient, results[0][1])
    alone = hidden_state_distance(mine[1:2, :, :2], theirs[1:2, :, :2], None, kind)
    assert torch.allclose(results[0][0][1:2], alone)


def test_pooling_is_that_of_each_row_alone() -> None:
    values, _ = _states()
    frames = torch.tensor([5, 3, 4])
    dirty = values.masked_fill(~valid_frames(frames, 5)[:, None, :, None], math.nan)
    pooled = pooled_frames(dirty, valid_frames(frames, 5), 3)
    for row, length in enumerate(frames.tolist()):
        alone = functional.adaptive_avg_pool1d(values[row, :, :length].transpose(1, 2), 3).transpose(1, 2)
        assert torch.allclose(pooled[row], alone, atol=1e-6)


def test_correlations_are_those_of_a_plain_loop() -> None:
    mine, theirs = _states(rows=6)
    expected = []
    for layer in range(2):
        for frame in range(5):
            pair = [(v[:, layer, frame] - v[:, layer, frame].mean(0)) for v in (mine, theirs)]
            one, two = (v / (v.var(0) + 1e-5).sqrt() for v in pair)
            cross, own = one.T @ two / 5, one.T @ one / 5
            rest = 1 - torch.eye(4)
            expected.append(
                (cross.diagonal() - 1).square().sum() / 10
                + 0.5 * (cross * rest).square().sum() / 100
                + 0.25 * (own * rest).square().sum() / 50_000
            )
    assert torch.allclose(barlow_distance(mine, theirs, 0.5, 0.25), torch.stack(expected).mean(), atol=1e-5)
    assert barlow_distance(mine[:1], theirs[:1]) == 0


def test_75_frames_a_second_become_50() -> None:
    # A ramp in time stays the same ramp: frame j lies at (j + 0.5) / rate seconds.
    ramp = ((torch.arange(75) + 0.5) / 75).reshape(1, 1, 75, 1).repeat(2, 1, 1, 1)
    frames = torch.tensor([75, 60])
    ramp[1, :, 60:] = math.nan
    values = at_frame_rate(ramp, frames, 1.5, 50)
    wanted = (torch.arange(50) + 0.5) / 50
    assert torch.allclose(values[0, 0, :, 0], wanted, atol=1e-6)
    assert torch.allclose(values[1, 0, :40, 0], wanted[:40], atol=1e-6)
    assert bool(values.isfinite().all())
