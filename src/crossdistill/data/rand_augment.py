"""RandAugment on whole batches: each picture gets its own operations and magnitudes, equal to Pillow's to rounding.

The 14 operations with their ranges are those of the strong view of MLKD (Jin et al., CVPR 2023): two are drawn with
repetition, each with a uniform magnitude (Cubuk et al., NeurIPS 2020, with one magnitude for all). Pixels outside the
picture are black.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from crossdistill.data.row_random import RowRandom

WHITE = 255.0
LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in grey, in parts of 2^16, as Pillow rounds them."""

Bytes = Float64[Tensor, "B C H W"]
"""Pictures of whole numbers of 0 to 255."""
Operation = Callable[[Bytes, Float64[Tensor, " B"]], Bytes]


@dataclass(frozen=True, slots=True)
class Ranged:
    """An operation, and the range of its magnitude."""

    change: Operation
    low: float = 0.0
    high: float = 0.0


def rand_augmented(pictures: Float[Tensor, "B C H W"], operations: int, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """Pictures of 0 to 1 after so many operations, rounded to bytes before each."""
    drawn = random.uniform(operations, 2).double()
    whole = (pictures.double() * WHITE).round()
    for number in range(operations):
        chosen = (drawn[:, number, 0] * len(OPERATIONS)).long()
        for place, operation in enumerate(OPERATIONS.values()):
            rows = (chosen == place).nonzero()[:, 0]
            if len(rows):
                magnitude = operation.low + drawn[rows, number, 1] * (operation.high - operation.low)
                whole[rows] = operation.change(whole[rows], magnitude)
    return (whole / WHITE).to(pictures.dtype)


def rotated(pictures: Float[Tensor, "B C H W"], most: float, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """Pictures turned around their middle by -`most` to `most` degrees, to the nearest pixel."""
    return _rotate(pictures.double(), most * (2 * random.uniform(1)[:, 0].double() - 1)).to(pictures.dtype)


def _auto_contrast(pictures: Bytes, magnitude: Tensor) -> Bytes:
    low, high = pictures.amin((2, 3), keepdim=True), pictures.amax((2, 3), keepdim=True)
    # A number divided by a tensor would be multiplied by its reciprocal, which rounds otherwise.
    scale = torch.full_like(high, WHITE) / (high - low).clamp(min=1)
    stretched = (pictures * scale - low * scale).trunc().clamp(0, WHITE)
    return torch.where(high > low, stretched, pictures)


def _equalize(pictures: Bytes, magnitude: Tensor) -> Bytes:
    """Each channel with a histogram that is as even as whole numbers allow."""
    values = pictures.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = values.amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    table = (step // 2 + before) // step.clamp(min=1)
    even = table.clamp(max=255).gather(2, values).view(pictures.shape).double()
    return torch.where((step > 0)[..., None], even, pictures)


def _posterize(pictures: Bytes, magnitude: Tensor) -> Bytes:
    step = 2.0 ** (8 - magnitude.floor())
    return (pictures / _each(step)).floor() * _each(step)


def _solarize(pictures: Bytes, magnitude: Tensor) -> Bytes:
    return torch.where(pictures < _each(magnitude), pictures, WHITE - pictures)


def _blend(plain: Bytes, pictures: Bytes, magnitude: Tensor) -> Bytes:
    # Pillow blends in single precision, then cuts the fraction off.
    part = _each(magnitude).float()
    return (plain.float() + part * (pictures - plain).float()).trunc().clamp(0, WHITE).double()


def _grey(pictures: Bytes) -> Float64[Tensor, "B 1 H W"]:
    if pictures.shape[1] == 1:
        return pictures
    weights = torch.tensor(LUMA, dtype=torch.float64).view(1, 3, 1, 1)
    return (((pictures * weights).sum(1, keepdim=True) + 2**15) / 2**16).floor()


def _brightness(pictures: Bytes, magnitude: Tensor) -> Bytes:
    return _blend(torch.zeros_like(pictures), pictures, magnitude)


def _colour(pictures: Bytes, magnitude: Tensor) -> Bytes:
    return _blend(_grey(pictures).expand_as(pictures), pictures, magnitude)


def _contrast(pictures: Bytes, magnitude: Tensor) -> Bytes:
    mean = (_grey(pictures).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean.expand_as(pictures), pictures, magnitude)


def _sharpness(pictures: Bytes, magnitude: Tensor) -> Bytes:
    """Between a smoothed picture, whose edge stays as it is, and the picture."""
    if min(pictures.shape[-2:]) < 3:
        return pictures
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    kernel[..., 1, 1] = 5
    inner = torch.nn.functional.conv2d(pictures.flatten(0, 1)[:, None], kernel) / 13
    smooth = pictures.clone()
    smooth[..., 1:-1, 1:-1] = (inner + 0.5).floor().clamp(0, WHITE).view(*pictures.shape[:2], *inner.shape[-2:])
    return _blend(smooth, pictures, magnitude)


def _rotate(pictures: Bytes, magnitude: Tensor) -> Bytes:
    height, width = pictures.shape[-2:]
    angle = -torch.deg2rad(magnitude)
    cosine, sine = angle.cos(), angle.sin()
    right = width / 2 - cosine * width / 2 - sine * height / 2
    down = height / 2 + sine * width / 2 - cosine * height / 2
    return _mapped(pictures, (cosine, sine, right, -sine, cosine, down))


def _shear_x(pictures: Bytes, magnitude: Tensor) -> Bytes:
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return _mapped(pictures, (one, magnitude, zero, zero, one, zero))


def _shear_y(pictures: Bytes, magnitude: Tensor) -> Bytes:
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return _mapped(pictures, (one, zero, zero, magnitude, one, zero))


def _translate_x(pictures: Bytes, magnitude: Tensor) -> Bytes:
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return _mapped(pictures, (one, zero, magnitude * pictures.shape[-1], zero, one, zero))


def _translate_y(pictures: Bytes, magnitude: Tensor) -> Bytes:
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return _mapped(pictures, (one, zero, zero, zero, one, magnitude * pictures.shape[-2]))


def _mapped(pictures: Bytes, matrix: tuple[Tensor, ...]) -> Bytes:
    """The nearest pixel of each place that (a, b, c, d, e, f) maps to (a x + b y + c, d x + e y + f)."""
    height, width = pictures.shape[-2:]
    a, b, c, d, e, f = (part[:, None, None] for part in matrix)
    y = torch.arange(height, dtype=torch.float64)[None, :, None] + 0.5
    x = torch.arange(width, dtype=torch.float64)[None, None, :] + 0.5
    column, row = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)
    taken = pictures.flatten(2).gather(2, place[:, None].expand(-1, pictures.shape[1], -1)).view(pictures.shape)
    return torch.where(inside[:, None], taken, 0.0)


def _each(number: Tensor) -> Tensor:
    return number.view(-1, 1, 1, 1)


def _identity(pictures: Bytes, magnitude: Tensor) -> Bytes:
    return pictures


OPERATIONS: Mapping[str, Ranged] = {
    "auto-contrast": Ranged(_auto_contrast),
    "brightness": Ranged(_brightness, 0.05, 0.95),
    "colour": Ranged(_colour, 0.05, 0.95),
    "contrast": Ranged(_contrast, 0.05, 0.95),
    "equalize": Ranged(_equalize),
    "identity": Ranged(_identity),
    "posterize": Ranged(_posterize, 4.0, 8.0),
    "rotate": Ranged(_rotate, -30.0, 30.0),
    "sharpness": Ranged(_sharpness, 0.05, 0.95),
    "shear-x": Ranged(_shear_x, -0.3, 0.3),
    "shear-y": Ranged(_shear_y, -0.3, 0.3),
    "solarize": Ranged(_solarize, 0.0, 256.0),
    "translate-x": Ranged(_translate_x, -0.3, 0.3),
    "translate-y": Ranged(_translate_y, -0.3, 0.3),
}
