"""What methods add around networks: published sizes, any shapes, and norms that leave no trace."""

import pytest
import torch
from torch import Tensor, nn

from crossdistill.nets import Fill, JointNorm, Layers, Review, UnitEmbedding, logit_projector, proxy_for, regressor
from crossdistill.nets.fill import FillWith
from crossdistill.nets.regressor import ChannelRegressor, resized

ROWS = 3


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((6, 28, 28), 1126),
        ((16, 10, 10), 3706),
        ((84,), 1910),
        ((32, 112, 112), 10_746),
        ((64, 56, 56), 35_578),
        ((128, 28, 28), 128_250),
    ],
)
def test_logit_projectors_have_the_published_sizes(shape: tuple[int, ...], parameters: int) -> None:
    made = logit_projector(shape, 10)
    assert size(made) == parameters
    assert made(torch.randn(ROWS, *shape)).shape == (ROWS, 10)


@pytest.mark.parametrize(
    ("mine", "theirs", "parameters"),
    [
        ((120, 1, 1), (596,), 27_428),
        ((84,), (298,), 4),
        ((64, 56, 56), (596,), 29_914_724),
        ((6, 28, 28), (64, 56, 56), 3520),
        ((64, 56, 56), (6, 28, 28), 3462),
        ((120,), (25_088,), 4),
        ((512, 30, 40), (512, 15, 20), 2_359_808),
        ((256, 60, 80), (256, 60, 80), 590_080),
        ((1024,), (512,), 4),
    ],
)
def test_released_regressors_have_the_published_sizes(
    mine: tuple[int, ...], theirs: tuple[int, ...], parameters: int
) -> None:
    assert size(regressor(mine, theirs, released=True)) == parameters


SHAPES = [(7,), (7, 1, 1), (5, 9), (4, 6, 6), (4, 3, 7), (3, 12, 13), (2, 4, 5, 6)]


@pytest.mark.parametrize("mine", SHAPES)
@pytest.mark.parametrize("theirs", SHAPES)
@pytest.mark.parametrize("released", [False, True])
def test_any_feature_is_regressed_to_any_shape(mine: tuple[int, ...], theirs: tuple[int, ...], released: bool) -> None:
    made = regressor(mine, theirs, released=released)
    for rows in (ROWS, 1, 0):
        assert made(torch.randn(rows, *mine)).shape == (rows, *theirs)
    made(torch.randn(ROWS, *mine)).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_vectors_are_regressed_by_one_linear_map() -> None:
    made = regressor((7, 1, 1), (5,))
    (weight, bias) = made.parameters()
    value = torch.randn(ROWS, 7, 1, 1)
    torch.testing.assert_close(made(value), value.flatten(1) @ weight.T + bias)


def test_resized_repeats_and_pools() -> None:
    value = torch.arange(4.0).view(1, 1, 2, 2)
    assert resized(value, (4, 2))[0, 0, :, 0].tolist() == [0, 0, 2, 2]
    assert resized(value, (1, 2)).flatten().tolist() == [1, 2]
    assert resized(value, (4, 1))[0, 0, :, 0].tolist() == [0.5, 0.5, 2.5, 2.5]


@pytest.mark.parametrize(
    ("shape", "logits", "parameters"),
    [((84,), (10,), 8158), ((128, 14, 14), (10,), 17_930), ((320,), (8,), 105_928), ((64, 24, 32), (41, 48, 64), 6889)],
)
def test_proxies_have_the_published_sizes(shape: tuple[int, ...], logits: tuple[int, ...], parameters: int) -> None:
    made = proxy_for(shape, logits)
    assert size(made) == parameters
    assert made(torch.randn(ROWS, *shape)).shape == (ROWS, *logits)


def test_unit_embeddings_have_length_one() -> None:
    for shape in ((7,), (7, 3, 2), (7, 5)):
        found = UnitEmbedding(7, 16)(torch.randn(ROWS, *shape))
        assert found.norm(dim=1).tolist() == pytest.approx([1.0] * ROWS)


def test_the_channel_regressor_works_position_by_position() -> None:
    made, value = ChannelRegressor(4, 6), torch.randn(ROWS, 4, 3, 5)
    assert size(made) == 4 * 6 + 2 * 6 * 6
    torch.testing.assert_close(made(value)[:, :, 1:2, 2:3], made(value[:, :, 1:2, 2:3]))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 5)])
def test_the_joint_norm_is_batch_norm_in_train_mode(shape: tuple[int, ...]) -> None:
    value = torch.randn(6, *shape, dtype=torch.float64) * 3 + 1
    theirs = (nn.BatchNorm2d if len(shape) > 1 else nn.BatchNorm1d)(4).double()
    ours = JointNorm(4).double()
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.copy_(other.normal_())
    torch.testing.assert_close(ours(value), theirs(value))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert torch.equal(ours.eval()(value), ours.train()(value))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_the_joint_norm_takes_one_value_and_none() -> None:
    norm = JointNorm(2)
    nn.init.constant_(norm.bias, 3.0)
    assert norm(torch.randn(1, 2)).tolist() == [[3.0, 3.0]]
    value = torch.zeros(0, 2, 4, 4, requires_grad=True)
    found = norm(value)
    found.sum().backward()
    assert found.shape == (0, 2, 4, 4)


def test_norms_see_the_rows_of_other_ranks() -> None:
    layers = Layers(nn.Conv2d(2, 3, 1), JointNorm(3), nn.ReLU(), Layers(nn.Conv2d(3, 3, 1), JointNorm(3)))
    value = torch.randn(6, 2, 4, 4)
    whole = layers(value)
    own, other = value[:2], value[2:]
    # Each gathering of this rank meets the same one of the other, in the same order.
    sent: list[Tensor] = []

    def listen(rows: Tensor) -> Tensor:
        sent.append(rows)
        return rows

    layers(value, listen)
    met = iter(sent)
    torch.testing.assert_close(layers(own, lambda rows: torch.cat([rows, next(met)[2:]])), whole[:2])
    assert len(other) == 4


def test_reviews_take_any_stages() -> None:
    mine, theirs = [(4, 9, 8), (6, 5, 4), (7, 1, 1)], [(3, 8, 8), (5, 4, 6), (9, 1, 1)]
    made = Review(mine, theirs)
    features = [torch.randn(ROWS, *shape, requires_grad=True) for shape in mine]
    found = made(features)
    assert [tuple(value.shape[1:]) for value in found] == theirs
    torch.stack([value.square().sum() for value in found]).sum().backward()
    # The deepest feature reaches the shallowest stage.
    assert bool(features[-1].grad.abs().sum() > 0)
    assert [tuple(value.shape) for value in made([value[:0] for value in features])] == [(0, *s) for s in theirs]


def test_fill_replaces_the_chosen_units() -> None:
    value = torch.randn(5, 3, 2, 2)
    replaced_by: dict[FillWith, Tensor | None] = {
        "mean": torch.full((2, 2), 7.0),
        "batch": value.mean(0)[1],
        "none": None,
    }
    for kind, wanted in replaced_by.items():
        made = Fill((3, 2, 2), kind)
        made.mean.fill_(7.0)
        made.replaced[1] = True
        found = made(value)
        assert torch.equal(found[:, [0, 2]], value[:, [0, 2]])
        assert torch.equal(found[:, 1], value[:, 1] if wanted is None else wanted.expand(5, 2, 2))
        assert made(value[:0]).shape == (0, 3, 2, 2)
        assert made.by_row == (kind != "batch")
        assert f"fill={kind}" in repr(made)
