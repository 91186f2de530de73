"""Sizes, names, initialisation and messages of the mask networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from facts import raises
from torch import nn

from crossdistill.errors import SettingError, ShapeError
from crossdistill.nets import (
    LowRankMaskNet1d,
    MaskNet1d,
    MaskNet2d,
    apply_mask,
    low_rank_mask_for,
    mask_for,
    mask_width,
)

# The published masks: shape at the tap, width, parameters (width factor 2, 3 heads).
PUBLISHED = [
    ((596,), 297, 106_030_486),
    ((298,), 147, 13_185_166),
    ((64, 56, 56), 30, 133_351),
    ((128, 28, 28), 63, 1_074_240),
    ((120, 1, 1), 60, 885_901),
    ((84,), 42, 307_147),
    ((320,), 159, 16_434_400),
    ((160,), 78, 2_034_007),
    ((512,), 255, 67_238_656),
    ((256,), 126, 8_353_927),
    ((1024,), 510, 536_338_951),
    ((512, 15, 20), 255, 67_506_432),
    ((512, 30, 40), 255, 67_506_432),
]


@pytest.mark.parametrize(("shape", "width", "parameters"), PUBLISHED)
def test_published_sizes(shape: tuple[int, ...], width: int, parameters: int) -> None:
    with torch.device("meta"):
        mask = mask_for(shape)
    assert mask.mha.embed_dim == mask_width(shape[0], heads=3, width_factor=2) == width
    assert mask.mha.head_dim == width // 3
    assert sum(parameter.numel() for parameter in mask.parameters()) == parameters


def test_a_tap_of_one_pixel_is_a_vector() -> None:
    assert isinstance(mask_for((120, 1, 1)), MaskNet1d)
    assert isinstance(mask_for((64, 2, 1)), MaskNet2d)
    mask = mask_for((24, 1, 1))
    value = torch.randn(5, 24)
    assert torch.equal(mask(value), mask(value[:, :, None, None]))


@pytest.mark.parametrize(("heads", "factor", "width"), [(3, 2, 30), (3, 8, 6), (4, 2, 32), (1, 64, 1), (5, 3, 20)])
def test_heads_and_width_factor(heads: int, factor: int, width: int) -> None:
    for shape in ((64,), (64, 5, 4)):
        mask = mask_for(shape, heads, factor)
        assert mask.mha.embed_dim == width
        assert mask(torch.randn(2, *shape)).shape == (2, 64)


def test_names_of_parameters() -> None:
    own = {
        "embed.weight",
        "embed.bias",
        "mha.in_proj_weight",
        "mha.in_proj_bias",
        "mha.out_proj.weight",
        "mha.out_proj.bias",
        "fc.weight",
        "fc.bias",
    }
    assert set(MaskNet1d(12, 6).state_dict()) == own
    reduction = {f"spatial_reduce.downsample.{name}" for name in ("0.weight", "1.weight")} | {
        f"spatial_reduce.downsample.2.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert set(MaskNet2d(12, 6).state_dict()) == own | reduction


def test_initialisation_is_that_of_the_layers_themselves() -> None:
    torch.manual_seed(3)
    mask = MaskNet1d(12, 6, 3)
    torch.manual_seed(3)
    layers = [nn.Linear(12, 72), nn.MultiheadAttention(6, 3, batch_first=True), nn.Linear(6, 1)]
    wanted = [tensor for layer in layers for tensor in layer.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(mask.state_dict().values(), wanted, strict=True))


def test_a_fresh_mask_is_about_one_half() -> None:
    assert float((mask_for((84,))(torch.randn(64, 84)).detach() - 0.5).abs().max()) < 0.2


def test_masking_scales_units_and_channels() -> None:
    mask = torch.rand(2, 3)
    assert torch.equal(apply_mask(torch.ones(2, 3), mask), mask)
    masked = apply_mask(torch.ones(2, 3, 4, 5), mask)
    assert torch.equal(masked, mask[:, :, None, None].expand(2, 3, 4, 5))
    assert apply_mask(torch.ones(2, 3, 1, 1), mask).shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("work", "kind", "facts"),
    [
        (lambda: mask_for((5,)), SettingError, ("5 units", "3 heads", "factor 2", 6)),
        (lambda: mask_for((24,), 0, 2), SettingError, ("1 or more",)),
        (lambda: mask_for((24,), 3, 0), SettingError, ("1 or more",)),
        (lambda: mask_for((24,), -1, 2), SettingError, ("1 or more",)),
        (lambda: low_rank_mask_for((24,), rank=0), SettingError, ("rank", 0, 1)),
        # The width is a multiple of the heads.
        (lambda: MaskNet1d(24, 8, 3), SettingError, ("width 8", "3 heads")),
        (lambda: MaskNet2d(24, 8, 3), SettingError, ("width 8", "3 heads")),
        (lambda: LowRankMaskNet1d(24, 8, 3, 1), SettingError, ("width 8", "3 heads")),
        (lambda: mask_for(()), ShapeError, ("()",)),
        (lambda: mask_for((4, 5, 6, 7)), ShapeError, ("(4, 5, 6, 7)",)),
        (lambda: low_rank_mask_for((4, 5, 6, 7)), ShapeError, ("(4, 5, 6, 7)",)),
        (lambda: mask_for((24,))(torch.randn(2, 25)), ShapeError, ("(2, 25)", "(rows, 24)")),
        (lambda: low_rank_mask_for((24,))(torch.randn(2, 25)), ShapeError, ("(2, 25)", "(rows, 24)")),
        (lambda: mask_for((24, 3, 3))(torch.randn(2, 25, 3, 3)), ShapeError, ("(2, 25, 3, 3)", "(rows, 24, H, W)")),
        (lambda: low_rank_mask_for((12, 5, 4))(torch.randn(2, 13, 5, 4)), ShapeError, ("(rows, 12, H, W)",)),
    ],
)
def test_what_no_mask_fits(work: Callable[[], object], kind: type[Exception], facts: tuple[Any, ...]) -> None:
    with raises(kind, *facts):
        work()


def test_the_narrowest_tap() -> None:
    assert mask_width(6, heads=3, width_factor=2) == 3
