"""Translators between features of any shapes, and the standardisation of teachers' features."""

import numpy as np
import pytest
import torch

from crossdistill.errors import SettingError
from crossdistill.nets.hadamard import even_rotation, hadamard
from crossdistill.nets.standardisation import Moments, Standardisation, Standardise
from crossdistill.nets.translators import Head, Translation, by_position, resampled

SHAPES = [(7,), (9, 6), (5, 6), (4, 3, 5)]
ROWS = 3


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "tokens"])
@pytest.mark.parametrize("mine", SHAPES)
@pytest.mark.parametrize("theirs", SHAPES)
def test_a_translation_has_the_teachers_positions_and_width(
    head: Head, mine: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    feature = torch.randn(ROWS, *mine)
    for skipped in (None, (0, 0)):
        made = Translation(head, mine, theirs, skipped=skipped)
        wanted = made.of_teacher(torch.randn(ROWS, *theirs))
        assert made(feature).shape == wanted.shape
        assert made(feature[:0]).shape == wanted[:0].shape
        # A row does not depend on the others.
        torch.testing.assert_close(made(feature)[1:2], made(feature[1:2]))


def test_leading_tokens_are_left_out() -> None:
    made = Translation("linear", (10, 6), (5, 4), skipped=(1, 2))
    feature = torch.randn(ROWS, 10, 6)
    changed = feature.clone()
    changed[:, 0] = torch.nan
    torch.testing.assert_close(made(changed), made(feature))
    assert made.of_teacher(torch.randn(ROWS, 5, 4)).shape == (ROWS, 3, 4)
    for mine in ((10,), (4, 3, 3), (1, 6)):
        with pytest.raises(SettingError, match="prefix_tokens"):
            Translation("linear", mine, (5, 4), skipped=(1, 0))


def test_positions_are_interpolated_and_pooled() -> None:
    line = torch.arange(4.0).reshape(1, 4, 1)
    assert resampled(line, (4,), (2,)).flatten().tolist() == [0.5, 2.5]
    assert resampled(line, (4,), (8,)).flatten().tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resampled(line, (4,), ()).flatten().tolist() == [1.5]
    assert resampled(line[:, :1], (), (2, 2)).shape == (1, 4, 1)
    # Nine tokens are a square beside a map.
    torch.testing.assert_close(
        Translation("linear", (9, 2), (2, 3, 3)).translate.body(torch.ones(1, 9, 2)).shape, torch.Size([1, 9, 2])
    )
    feature = torch.randn(2, 3, 4, 5)
    assert torch.equal(by_position(feature)[:, 7], feature[:, :, 1, 2])


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 64, 192, 576, 768])
def test_hadamard_matrices_are_orthogonal_signs(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix.double() @ matrix.T.double(), size * torch.eye(size).double())


def test_there_is_no_hadamard_matrix_of_these_sizes() -> None:
    assert [size for size in (3, 5, 6, 10, 14, 30, 86) if hadamard(size) is not None] == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 12, 13, 16, 50])
def test_rotations_make_variances_even(size: int) -> None:
    variances = torch.rand(size, generator=torch.Generator().manual_seed(size)).double() ** 4
    variances[: size // 3] = 0  # of low rank
    rotation = even_rotation(variances)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64))
    even = (rotation @ torch.diag(variances) @ rotation.T).diagonal()
    torch.testing.assert_close(even, variances.mean().expand(size))


def settled(kind: Standardise, feature: torch.Tensor) -> Standardisation:
    made = Standardisation(kind, feature.shape[2])
    moments = Moments(made)
    for part in feature.split(7):
        moments.add(part)
    moments.add(feature[:0])
    made.settle(moments)
    return made


@pytest.mark.parametrize("width", [4, 6, 12])
def test_statistics_by_numpy(width: int) -> None:
    source = torch.Generator().manual_seed(width)
    feature = torch.randn(40, 3, width, generator=source) @ torch.randn(width, width, generator=source) + 1000
    flat = feature.flatten(0, 1).double().numpy()
    scored = settled("z-score", feature)(feature).flatten(0, 1)
    torch.testing.assert_close(
        scored.double(), torch.from_numpy((flat - flat.mean(0)) / flat.std(0)), atol=1e-3, rtol=0
    )
    plain = settled("none", feature)
    assert torch.equal(plain(feature), feature)
    assert float(plain.variance) == pytest.approx(flat.var(0).mean(), rel=1e-6)

    phi = settled("phi-s", feature)(feature).flatten(0, 1).double().numpy()
    np.testing.assert_allclose(phi.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(phi.std(0), 1, atol=1e-3)
    # One rotation and one number for all channels: distances keep their proportions.
    ratio = np.linalg.norm(phi[1:] - phi[:-1], axis=1) / np.linalg.norm(flat[1:] - flat[:-1], axis=1)
    np.testing.assert_allclose(ratio, 1 / np.sqrt(flat.var(0).mean()), rtol=1e-3)


@pytest.mark.parametrize("kind", ["none", "z-score", "phi-s"])
def test_features_without_variance_and_without_rows_stay_finite(kind: Standardise) -> None:
    constant = torch.full((5, 2, 6), 3.0)
    assert bool(settled(kind, constant)(constant).isfinite().all())
    dead = torch.randn(30, 2, 6)
    dead[:, :, :2] = 0
    assert bool(settled(kind, dead)(dead).isfinite().all())
    assert bool(settled(kind, constant[:0])(constant).isfinite().all())
