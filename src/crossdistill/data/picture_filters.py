"""Blurs and resampling of batches of pictures (B, C, H, W); each picture may have its own amounts."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.data.row_random import RowRandom

TRUNCATED = 4.0
"""A Gaussian ends at so many standard deviations."""


def convolved(pictures: Float[Tensor, "B C H W"], kernel: Float[Tensor, "h w"]) -> Float[Tensor, "B C H W"]:
    """Each channel by one kernel of odd sides, the picture mirrored at its edges."""
    height, width = pictures.shape[-2:]
    # A mirror image is at most as large as the picture.
    down, right = min(kernel.shape[0] // 2, height - 1), min(kernel.shape[1] // 2, width - 1)
    top, left = kernel.shape[0] // 2 - down, kernel.shape[1] // 2 - right
    kernel = kernel[top : kernel.shape[0] - top, left : kernel.shape[1] - left]
    kernel = kernel / kernel.sum()
    padded = functional.pad(pictures, (right, right, down, down), mode="reflect")
    return functional.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view(pictures.shape)


def gaussian(sigma: float, reach: int | None = None) -> Float[Tensor, " taps"]:
    """A Gaussian kernel of sum 1; a standard deviation of 0 leaves the middle."""
    radius = int(TRUNCATED * sigma + 0.5) if reach is None else reach
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (places / sigma) ** 2) if sigma > 0 else (places == 0).float()
    return weights / weights.sum()


def blurred(pictures: Float[Tensor, "B C H W"], sigma: float) -> Float[Tensor, "B C H W"]:
    """A Gaussian blur of this standard deviation in pixels."""
    line = gaussian(sigma)
    return convolved(convolved(pictures, line[:, None]), line[None, :]) if len(line) > 1 else pictures


def defocused(pictures: Float[Tensor, "B C H W"], radius: float, softness: float) -> Float[Tensor, "B C H W"]:
    """A blur by a disk of this radius in pixels, whose edge is blurred by a Gaussian of `softness`."""
    reach = max(1, math.ceil(radius)) + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = ((places[:, None] ** 2 + places[None, :] ** 2) <= radius**2).float()
    soft = gaussian(softness, 1)
    kernel = functional.conv2d(disk[None, None] / disk.sum(), (soft[:, None] * soft)[None, None], padding=1)[0, 0]
    return convolved(pictures, kernel)


def moved(pictures: Float[Tensor, "B C H W"], length: int, sigma: float, random: RowRandom) -> Float[Tensor, "B C H W"]:
    """A blur of motion along a line of up to `length` pixels, at an angle of -45 to 45 degrees of each picture."""
    angle = (random.uniform(1)[:, 0] - 0.5) * (torch.pi / 2)
    weights = gaussian(sigma, length)[length:]
    weights = weights / weights.sum()
    total = torch.zeros_like(pictures)
    for step, weight in enumerate(weights):
        total += weight * shifted(pictures, -step * angle.sin(), -step * angle.cos())
    return total


def shifted(
    pictures: Float[Tensor, "B C H W"], down: Float[Tensor, " B"], right: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Each picture moved by fractions of pixels, its edges mirrored."""
    rows, columns = places(pictures)
    return sampled(pictures, rows - down[:, None, None], columns - right[:, None, None])


def zoomed(pictures: Float[Tensor, "B C H W"], factors: list[float]) -> Float[Tensor, "B C H W"]:
    """The mean of the picture and of its middle enlarged by each factor."""
    height, width = pictures.shape[-2:]
    rows, columns = places(pictures)
    middle = (height - 1) / 2, (width - 1) / 2
    total = pictures.clone()
    for factor in factors:
        total += sampled(pictures, (rows - middle[0]) / factor + middle[0], (columns - middle[1]) / factor + middle[1])
    return total / (len(factors) + 1)


def shuffled(
    pictures: Float[Tensor, "B C H W"], reach: int, rounds: int, random: RowRandom
) -> Float[Tensor, "B C H W"]:
    """Each pixel changes places with one at most `reach` rows and columns away, one after another."""
    height, width = pictures.shape[-2:]
    pixels = pictures.flatten(2).clone()
    number = torch.arange(len(pixels))
    inner = [
        (row, column)
        for row in range(height - reach - 1, reach - 1, -1)
        for column in range(width - reach - 1, reach - 1, -1)
    ]
    by = (random.uniform(rounds, len(inner), 2) * (2 * reach + 1)).long() - reach
    for turn in range(rounds):
        for place, (row, column) in enumerate(inner):
            here = row * width + column
            there = here + by[:, turn, place, 0] * width + by[:, turn, place, 1]
            mine, theirs = pixels[:, :, here].clone(), pixels[number, :, there]
            pixels[:, :, here] = theirs
            pixels[number, :, there] = mine
    return pixels.view(pictures.shape)


def bent(
    pictures: Float[Tensor, "B C H W"], amount: float, sigma: float, corner: float, random: RowRandom
) -> Float[Tensor, "B C H W"]:
    """An affine map that moves three points by up to `corner` pixels, then smooth random displacements.

    Displacements are uniform in [-1, 1], blurred by a Gaussian of `sigma` pixels and multiplied by `amount`.
    """
    height, width = pictures.shape[-2:]
    rows, columns = places(pictures)
    drawn = random.uniform(6 + 2 * height * width)
    side = min(height, width) // 3
    middle = torch.tensor([height / 2, width / 2])
    points = middle + side * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    targets = points + corner * (2 * drawn[:, :6].view(-1, 3, 2) - 1)
    whole = torch.ones(len(pictures), 3, 1)
    # The picture at a place comes from where the map back leads.
    back = torch.linalg.solve(torch.cat([targets, whole], 2), points.expand(len(pictures), 3, 2))
    grid = torch.stack([rows, columns, torch.ones_like(rows)], -1).expand(len(pictures), -1, -1, 3)
    origin = torch.einsum("bhwi,bij->bhwj", grid, back)
    warped = sampled(pictures, origin[..., 0], origin[..., 1])
    if not amount:
        return warped
    by = amount * blurred(2 * drawn[:, 6:].reshape(-1, 2, height, width) - 1, sigma)
    return sampled(warped, rows + by[:, 0], columns + by[:, 1])


def places(pictures: Tensor) -> tuple[Float[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
    """The row and the column of each pixel."""
    height, width = pictures.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
    )
    return rows[None], columns[None]


def sampled(
    pictures: Float[Tensor, "B C H W"], rows: Float[Tensor, "#B h w"], columns: Float[Tensor, "#B h w"]
) -> Float[Tensor, "B C h w"]:
    """Bilinear values at these places in pixels, the picture mirrored at its edges."""
    height, width = pictures.shape[-2:]
    scaled = [2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1]
    grid = torch.stack([part.expand(len(pictures), *part.shape[1:]) for part in scaled], -1)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
