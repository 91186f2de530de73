"""Corruptions against slow accounts of one picture, and what holds of all: seeds, severities, forms."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from facts import raises
from PIL import Image
from torch import Tensor

from crossdistill import Dataset, InputSpec
from crossdistill.data.corruptions import CORRUPTIONS, TABLE, corrupted, corrupted_data
from crossdistill.data.prepare import mean_and_deviation
from crossdistill.data.row_random import RowRandom
from crossdistill.errors import DataError, SettingError, ShapeError
from crossdistill.runtime.hashing import derived_seed

IDS = torch.tensor([7, 0, 3])
ROUNDED = 0.5 / 255 + 1e-6


def pictures(side: int = 16, channels: int = 3) -> Tensor:
    """Smooth pictures with edges, in whole bytes."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [(rows * (2 + row) + columns * (3 + channel)) % 17 / 17 for row in range(3) for channel in range(channels)]
    made = torch.stack(waves).view(3, channels, side, side)
    made[0, :, 4:9, 5:11] = torch.tensor([0.9, 0.2, 0.4])[:channels, None, None]
    return (made * 255).round() / 255


def draws(name: str, *shape: int, normal: bool = False) -> np.ndarray:
    random = RowRandom(derived_seed("corruption", 0, name), IDS)
    drawn = random.normal(*shape) if normal else random.uniform(*shape)
    return drawn.double().numpy()


def near(found: Tensor, wanted: np.ndarray, tolerance: float = ROUNDED) -> None:
    difference = np.abs(found.double().numpy() - np.clip(wanted, 0, 1)).max()
    assert difference <= tolerance, difference


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_picture_depends_on_its_id_the_name_and_the_seed_alone(name: str) -> None:
    given = pictures()
    whole = corrupted(given, name, 3, IDS)
    assert whole.shape == given.shape
    assert whole.dtype == torch.float32
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    assert torch.equal(whole * 255, (whole * 255).round())
    alone = torch.cat([corrupted(given[row : row + 1], name, 3, IDS[row : row + 1]) for row in (2, 0, 1)])
    assert torch.equal(alone, whole[[2, 0, 1]])
    grey = corrupted(given[:, :1], name, 3, IDS)
    assert grey.shape == (3, 1, 16, 16)
    assert len(corrupted(given[:0], name, 3, IDS[:0])) == 0
    random = name.endswith("-noise") or name in ("glass-blur", "motion-blur", "elastic-transform")
    assert torch.equal(corrupted(given, name, 3, IDS, seed=1), whole) != random


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"saturate", "elastic-transform", "glass-blur"}))
def test_a_greater_severity_is_further_away(name: str) -> None:
    given = pictures(32)
    distances = [float((corrupted(given, name, severity, IDS) - given).square().mean()) for severity in range(1, 6)]
    assert distances[0] < distances[2] < distances[4]
    assert len(TABLE[name].amounts) == 5


def test_noise() -> None:
    given, size = pictures().double().numpy(), (3, 16, 16)
    near(corrupted(pictures(), "gaussian-noise", 2, IDS), given + 0.06 * draws("gaussian-noise", *size, normal=True))
    speckle = given + given * 0.2 * draws("speckle-noise", *size, normal=True)
    near(corrupted(pictures(), "speckle-noise", 5, IDS), speckle)
    drawn = draws("impulse-noise", *size)
    near(corrupted(pictures(), "impulse-noise", 5, IDS), np.where(drawn < 0.035, 0, np.where(drawn >= 0.965, 1, given)))


def test_shot_noise_has_the_mean_and_variance_of_counted_photons() -> None:
    ids = torch.arange(400)
    flat = torch.full((400, 1, 8, 8), 0.4)
    found = corrupted(flat, "shot-noise", 5, ids)
    assert math.isclose(float(found.mean()), 0.4, rel_tol=0.01)
    assert math.isclose(float(found.var()), 0.4 / 50, rel_tol=0.05)
    assert not corrupted(torch.zeros(2, 3, 4, 4), "shot-noise", 5, torch.arange(2)).any()


def mirrored(place: int, side: int) -> int:
    place = abs(place) % (2 * side - 2)
    return 2 * side - 2 - place if place >= side else place


def filtered(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """One channel by a kernel, pixel by pixel."""
    side, reach = len(picture), len(kernel) // 2
    found = np.zeros_like(picture)
    for row in range(side):
        for column in range(side):
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    there = mirrored(row + down, side), mirrored(column + right, side)
                    found[row, column] += kernel[down + reach, right + reach] * picture[there]
    return found


def bell(sigma: float, reach: int) -> np.ndarray:
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def test_blurs_by_a_kernel() -> None:
    given = pictures()[:1, :1]
    one = given[0, 0].double().numpy()
    near(corrupted(given, "gaussian-blur", 5, IDS[:1])[0, 0], filtered(one, bell(1.0, 4)))
    disk = np.zeros((7, 7))
    for row in range(-3, 4):
        for column in range(-3, 4):
            disk[row + 3, column + 3] = row**2 + column**2 <= 1.5**2
    soft = np.zeros((7, 7))
    for row in range(1, 6):
        for column in range(1, 6):
            soft[row, column] = (disk[row - 1 : row + 2, column - 1 : column + 2] * bell(0.1, 1)).sum()
    near(corrupted(given, "defocus-blur", 5, IDS[:1])[0, 0], filtered(one, soft / soft.sum()))


def between(picture: np.ndarray, row: float, column: float) -> float:
    """The bilinear value of one channel at a place."""
    top, left = math.floor(row), math.floor(column)
    value = 0.0
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - abs(row - top - down)) * (1 - abs(column - left - right))
        value += weight * picture[mirrored(top + down, len(picture)), mirrored(left + right, len(picture))]
    return float(value)


def mapped(picture: np.ndarray, origin: "np.ndarray") -> np.ndarray:
    side = len(picture)
    return np.array([[between(picture, *origin[row, column]) for column in range(side)] for row in range(side)])


def grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).astype(float)


def test_blur_of_motion_and_zoom() -> None:
    given, places = pictures()[:1, :1], grid(16)
    one = given[0, 0].double().numpy()
    angle = (draws("motion-blur", 1)[0, 0] - 0.5) * math.pi / 2
    weights = np.exp(-0.5 * (np.arange(13) / 1.5) ** 2)
    line = sum(
        weight * mapped(one, places + step * np.array([math.sin(angle), math.cos(angle)]))
        for step, weight in enumerate(weights / weights.sum())
    )
    near(corrupted(given, "motion-blur", 2, IDS[:1])[0, 0], np.asarray(line), ROUNDED + 1e-4)
    factors = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05]
    zoomed = one + sum(mapped(one, (places - 7.5) / factor + 7.5) for factor in factors)
    near(corrupted(given, "zoom-blur", 1, IDS[:1])[0, 0], zoomed / 7, ROUNDED + 1e-4)


def test_glass_exchanges_neighbours() -> None:
    given = pictures()[:1]
    wanted = given[0].double().numpy().copy()
    drawn = draws("glass-blur", 1, 14 * 14, 2)[0, 0]
    number = 0
    for row in range(14, 0, -1):
        for column in range(14, 0, -1):
            down, right = (int(part * 3) - 1 for part in drawn[number])
            number += 1
            here = wanted[:, row, column].copy()
            wanted[:, row, column] = wanted[:, row + down, column + right]
            wanted[:, row + down, column + right] = here
    near(corrupted(given, "glass-blur", 1, IDS[:1])[0], wanted)


def test_elastic_transform() -> None:
    given = pictures()[:1, :1]
    one, places, side = given[0, 0].double().numpy(), grid(16), 16
    drawn = draws("elastic-transform", 6 + 2 * side * side)[0]
    points = 8 + 5 * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    targets = points + 32 * 0.05 * (2 * drawn[:6].reshape(3, 2) - 1)
    back = np.linalg.solve(np.hstack([targets, np.ones((3, 1))]), points)
    warped = mapped(one, np.concatenate([places, np.ones((side, side, 1))], -1) @ back)
    by = [filtered(field, bell(1.28, 5)) for field in 2 * drawn[6:].reshape(2, side, side) - 1]
    wanted = mapped(warped, places + 3.2 * np.stack(by, -1))
    near(corrupted(given, "elastic-transform", 4, IDS[:1])[0, 0], wanted, ROUNDED + 1e-3)


def test_colours() -> None:
    given = pictures()
    given[1, :, :4] = torch.tensor([0.0, 0.2, 1.0]).repeat(6)[:16] * 1.0
    array = given.double().numpy()
    mean = array.mean((2, 3), keepdims=True)
    near(corrupted(given, "contrast", 4, IDS), (array - mean) * 0.3 + mean)
    for name, change in (
        ("brightness", lambda hue, saturation, value: (hue, saturation, min(1.0, value + 0.2))),
        ("saturate", lambda hue, saturation, value: (hue, min(1.0, saturation * 2 + 0.1), value)),
    ):
        wanted = np.empty_like(array)
        for row in range(3):
            for y in range(16):
                for x in range(16):
                    wanted[row, :, y, x] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*array[row, :, y, x])))
        near(corrupted(given, name, 4, IDS), wanted)


def test_jpeg_and_pixelate_are_pillows() -> None:
    given = pictures()
    for row in range(3):
        picture = Image.fromarray((given[row] * 255).to(torch.uint8).permute(1, 2, 0).numpy())
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=40)
        stored = np.asarray(Image.open(content)).transpose(2, 0, 1) / 255
        near(corrupted(given, "jpeg-compression", 5, IDS)[row], stored)
        small = picture.resize((10, 10), Image.Resampling.BOX).resize((16, 16), Image.Resampling.BOX)
        near(corrupted(given, "pixelate", 5, IDS)[row], np.asarray(small).transpose(2, 0, 1) / 255)


def test_wrong_names_and_forms_are_refused() -> None:
    with raises(SettingError, "'gausian-noise'", "'gaussian-noise'"):
        corrupted(pictures(), "gausian-noise", 1, IDS)
    with raises(SettingError, "severity=6", 5):
        corrupted(pictures(), "contrast", 6, IDS)
    with raises(ShapeError, "(3, 2, 16, 16)"):
        corrupted(pictures()[:, :2], "contrast", 1, IDS)
    sound = Dataset.from_arrays("sound", {"wave": torch.zeros(30, 5)}, [0, 1] * 15)
    with raises(DataError, "'sound'", "wave (array)"):
        corrupted_data(sound, "contrast", 1)


def test_data_are_read_with_a_corruption() -> None:
    values = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spec = InputSpec("image", (3, 8, 8), {"normalisation": mean_and_deviation(0.5, 0.25)})
    data = Dataset.from_arrays(
        "pictures",
        {"image": (values - 0.5) / 0.25, "wave": torch.zeros(30, 5)},
        [0, 1] * 15,
        input_specs={"image": spec},
    )
    changed = corrupted_data(data, "gaussian-blur", 5)
    rows = torch.tensor([4, 20])
    read = changed.batch(rows).inputs["image"]
    assert isinstance(read, Tensor)
    wanted = (corrupted(values[rows], "gaussian-blur", 5, rows) - 0.5) / 0.25
    assert torch.allclose(read, wanted, atol=1e-5)
    assert changed.inputs["wave"] is data.inputs["wave"]
    assert len({data.fingerprint, changed.fingerprint, corrupted_data(data, "gaussian-blur", 4).fingerprint}) == 3
    with raises(SettingError, "'blur'"):
        corrupted_data(data, "blur", 1)
