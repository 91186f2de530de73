"""Adam by parts: the numbers of PyTorch's own, with gradients in factors and with moments in files."""

import copy
from pathlib import Path

import pytest
import torch
from facts import raises

from crossdistill.autograd.factored import FactoredGradient, factored_gradients
from crossdistill.nets import MaskNet1d
from crossdistill.stage import OptimizerConfig
from crossdistill.training.optimizer import ChunkedAdam, optimizer_for

STEPS = 4
SMALL = {"large_bytes": 1024, "part_bytes": 3 * 15 * 32 * 4}
"""Everything of 1 KiB is large, and parts are of three tokens, which does not go into 32."""


def train(mask: MaskNet1d, moves: torch.optim.Optimizer, steps: range, *, factored: bool) -> None:
    for step in steps:
        value = torch.randn(6, 32, generator=torch.Generator().manual_seed(step))
        moves.zero_grad()
        with factored_gradients(factored, large_bytes=1024):
            mask(value).square().sum().backward()
        assert isinstance(mask.embed.weight.grad, FactoredGradient) == factored
        moves.step()


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("moments", ["memory", "disk"])
@pytest.mark.parametrize("factored", [True, False])
def test_weights_are_those_of_adam(tmp_path: Path, name: str, moments: str, factored: bool) -> None:
    config = OptimizerConfig.model_validate(
        {"name": name, "moments": moments, "learning_rate": 0.01, "weight_decay": 0.1}
    )
    mask = MaskNet1d(32, 15)
    plain = copy.deepcopy(mask)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    train(
        mask,
        optimizer_for(config, [{"params": list(mask.parameters())}], folder=tmp_path, **SMALL),
        range(STEPS),
        factored=factored,
    )
    train(plain, kind(plain.parameters(), 0.01, weight_decay=0.1, fused=True), range(STEPS), factored=False)
    for (label, one), other in zip(mask.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=label)
    assert not list(tmp_path.iterdir()), "the files have no names"


@pytest.mark.parametrize("moments", ["memory", "disk"])
def test_a_resumed_optimizer_goes_on_as_if_nothing_was(tmp_path: Path, moments: str) -> None:
    config = OptimizerConfig.model_validate({"moments": moments})
    mask = MaskNet1d(32, 15)
    first = optimizer_for(config, [{"params": list(mask.parameters())}], folder=tmp_path, **SMALL)
    train(mask, first, range(2), factored=True)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(mask)
    second = optimizer_for(config, [{"params": list(other.parameters())}], folder=tmp_path, **SMALL)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(mask, first, range(2, STEPS), factored=True)
    train(other, second, range(2, STEPS), factored=True)
    for one, two in zip(mask.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_large_moments_alone_lie_in_files(tmp_path: Path) -> None:
    mask = MaskNet1d(32, 15)
    moves = ChunkedAdam(mask.parameters(), folder=tmp_path, **SMALL, fused=True)
    train(mask, moves, range(1), factored=True)
    assert set(moves._mapped) == {own for own in mask.parameters() if own.numel() * 4 >= 1024}
    assert moves.state[mask.embed.weight]["exp_avg"].any()


def test_an_overflow_skips_parts_too(tmp_path: Path) -> None:
    mask = MaskNet1d(32, 15)
    moves = ChunkedAdam(mask.parameters(), folder=tmp_path, **SMALL, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(mask)
    scaler.scale(mask(torch.randn(40, 32)).sum() * torch.inf).backward()
    scaler.unscale_(moves)
    scaler.step(moves)
    scaler.update()
    for one, two in zip(mask.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two)


def test_sgd_has_no_moments_to_keep_on_disk() -> None:
    with raises(ValueError, "sgd", "moments"):
        OptimizerConfig(name="sgd", moments="disk")
