"""Changes of whole batches of pictures of 0 to 1 in tensors, each picture by its own random numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.data.picture_filters import places, sampled
from crossdistill.data.row_random import RowRandom

CUTOUT_FILL = (125 / 255, 123 / 255, 114 / 255)
"""Colour of a cut-out square, about the mean of CIFAR-100, as in the strong view of MLKD; of grey pictures its mean."""
RATIOS = (3 / 4, 4 / 3)
"""Width over height of a resized part."""
ATTEMPTS = 10


def cropped(pictures: Float[Tensor, "B C H W"], margin: int, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """A part of the size of the picture, at a random place of the picture with `margin` black pixels on every side."""
    height, width = pictures.shape[-2:]
    padded = torch.nn.functional.pad(pictures, (margin,) * 4)
    start = (random.uniform(2) * (2 * margin + 1)).long().tolist()
    # Slices one by one take a tenth of the time of one gather of all pixels.
    taken = [one[:, top : top + height, left : left + width] for one, (top, left) in zip(padded, start, strict=True)]
    return torch.stack(taken) if taken else pictures


def parts(sizes: Float[Tensor, "B 2"], least: float, random: RowRandom) -> Float[Tensor, "B 4"]:
    """Top, left, height and width of a random part of pictures of these heights and widths, in pixels.

    Its area is at least `least` of the picture's, its ratio of sides 3/4 to 4/3 (Szegedy et al., CVPR 2015, as
    torchvision draws them): the first of ten attempts that fits, or else the largest square in the middle.
    """
    drawn = random.uniform(ATTEMPTS, 4)
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (least + drawn[..., 0] * (1 - least))
    low, high = (torch.tensor(ratio).log() for ratio in RATIOS)
    ratio = (low + drawn[..., 1] * (high - low)).exp()
    tall, wide = (area / ratio).sqrt().round().clamp(min=1), (area * ratio).sqrt().round().clamp(min=1)
    fits = (tall <= height) & (wide <= width)
    first = fits.float().argmax(1, keepdim=True)
    found, square = fits.any(1, keepdim=True), torch.minimum(height, width)
    tall = torch.where(found, tall.gather(1, first), square)
    wide = torch.where(found, wide.gather(1, first), square)
    corner = drawn.gather(1, first[..., None].expand(-1, -1, 4))[:, 0, 2:]
    free = torch.cat([height - tall, width - wide], 1)
    start = torch.where(found, (corner * (free + 1)).floor(), (free / 2).round())
    return torch.cat([start, tall, wide], 1)


def resized_parts(pictures: Float[Tensor, "B C H W"], least: float, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """A random part of each picture at its size, interpolated between pixels."""
    height, width = pictures.shape[-2:]
    box = parts(torch.tensor([[height, width]]).float().expand(len(pictures), 2), least, random)
    top, left, tall, wide = (side[:, None, None] for side in box.unbind(1))
    rows, columns = places(pictures)
    rows = (top + (rows + 0.5) * tall / height - 0.5).clamp(top, top + tall - 1)
    columns = (left + (columns + 0.5) * wide / width - 0.5).clamp(left, left + wide - 1)
    return sampled(pictures, rows.expand(-1, -1, width), columns.expand(-1, height, -1))


def cut_out(pictures: Float[Tensor, "B C H W"], most: float, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """A grey square around a random place, its side up to `most` of the shorter side; a part may be outside."""
    height, width = pictures.shape[-2:]
    drawn = random.uniform(3)
    side = drawn[:, :1] * most * min(height, width)
    middle = drawn[:, 1:] * torch.tensor([height, width])
    fill = torch.tensor(CUTOUT_FILL).view(1, 3, 1, 1)
    fill = fill if pictures.shape[1] == 3 else fill.mean(1, keepdim=True)
    inside = _between(height, middle[:, :1], side)[:, :, None] & _between(width, middle[:, 1:], side)[:, None, :]
    return torch.where(inside[:, None], fill.to(pictures.dtype), pictures)


def _between(length: int, middle: Float[Tensor, "B 1"], side: Float[Tensor, "B 1"]) -> Tensor:
    """The pixels whose middle is within half a side of a place."""
    return (torch.arange(length) + 0.5 - middle).abs() < side / 2
