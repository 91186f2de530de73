"""Changes of whole batches of pictures of 0 to 1 in tensors, each picture by its own random numbers."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.data.row_random import RowRandom

CUTOUT_FILL = (125 / 255, 123 / 255, 114 / 255)
"""Colour of a cut-out square, about the mean of CIFAR-100, as in the strong view of MLKD; of grey pictures its mean."""


def cropped(pictures: Float[Tensor, "B C H W"], margin: int, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """A part of the size of the picture, at a random place of the picture with `margin` black pixels on every side."""
    height, width = pictures.shape[-2:]
    padded = torch.nn.functional.pad(pictures, (margin,) * 4)
    start = (random.uniform(2) * (2 * margin + 1)).long()
    return _taken(padded, start[:, :1] + torch.arange(height), start[:, 1:] + torch.arange(width))


def _taken(
    pictures: Float[Tensor, "B C H W"], rows: Int64[Tensor, "B h"], columns: Int64[Tensor, "B w"]
) -> Float[Tensor, "B C h w"]:
    """These rows and columns of each picture."""
    number = torch.arange(len(pictures))[:, None, None]
    # Advanced indices on both sides of a slice come first.
    return pictures[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
