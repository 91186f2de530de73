"""Low-rank masks: how many parameters they have, where 50 times fewer are possible, and what they compute."""

import pytest
import torch
from torch import nn

from crossdistill.nets import LowRankMaskNet1d, LowRankMaskNet2d, low_rank_mask_for, mask_for
from crossdistill.nets.mask_low_rank import default_rank


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Shapes at the published taps and at those of av-digits: the default rank, and how many times fewer parameters the
# projector has then. Below 52 units no rank reaches 50.
SIZES = [
    ((596,), 11, 54),
    ((298,), 5, 59),
    ((320,), 6, 53),
    ((1024,), 20, 51),
    ((84,), 1, 83),
    ((120, 1, 1), 2, 59),
    ((64, 56, 56), 1, 62),
    ((128, 28, 28), 2, 63),
    ((64,), 1, 62),
    ((48,), 1, 47),
    ((32,), 1, 30),
    ((24, 4, 4), 1, 23),
]


@pytest.mark.parametrize(("shape", "rank", "fewer"), SIZES)
def test_the_projector_has_fifty_times_fewer_parameters(shape: tuple[int, ...], rank: int, fewer: int) -> None:
    with torch.device("meta"):
        full, low = mask_for(shape), low_rank_mask_for(shape)
    assert low.embed.down.out_features == rank
    assert size(full.embed) // size(low.embed) == fewer
    assert size(low) - size(low.embed) == size(full) - size(full.embed), "everything else is the same"
    if shape[0] >= 52:
        assert fewer >= 50
        assert size(full.embed) / size(low_rank_mask_for(shape, rank=rank + 1).embed) < 50, "no larger rank does"


def test_where_fifty_begins() -> None:
    reached = [length for length in range(12, 80) if default_rank(length, length // 6 * 3) >= 1]
    ratios = {}
    for length in reached:
        width = length // 6 * 3
        ratios[length] = (length * width * length + length * width) / (length + width * length + 1)
    assert min(length for length, ratio in ratios.items() if ratio >= 50) == 52


def plain(mask: LowRankMaskNet1d | LowRankMaskNet2d, vector: torch.Tensor) -> torch.Tensor:
    """As the full mask is written in the paper, with the low-rank projector's tokens."""
    tokens = mask.embed(vector)
    attended, _ = mask.mha(tokens, tokens, tokens, need_weights=True)
    return torch.sigmoid(mask.fc(attended).squeeze(2))


@pytest.mark.parametrize("rank", [1, 3, 30])
def test_it_is_attention_over_low_rank_tokens(rank: int) -> None:
    mask = LowRankMaskNet1d(24, 12, 3, rank).double()
    value = torch.randn(5, 24, dtype=torch.float64)
    wanted, found = plain(mask, value), mask(value)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), list(mask.parameters()))
    theirs = torch.autograd.grad((wanted * weights).sum(), list(mask.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_maps_are_reduced_over_space_first() -> None:
    mask = low_rank_mask_for((12, 5, 4)).double()
    assert isinstance(mask, LowRankMaskNet2d)
    value = torch.randn(6, 12, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(mask(value), plain(mask, mask.spatial_reduce(value)), rtol=1e-12, atol=1e-14)
