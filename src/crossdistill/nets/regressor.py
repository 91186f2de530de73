"""Regressors: map a student's feature to the shape of a teacher's, for a comparison."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.spatial import as_map

Shape = tuple[int, ...]


def regressor(mine: Shape, theirs: Shape, *, released: bool = False) -> "Regressor":
    """FitNets' regressor between two shapes (without the batch), without activations.

    Vector to vector: Linear. Map to vector: 3x3 convolution to 16 channels, then Linear. Map to map: 3x3 convolution,
    strided or transposed if the size is at least halved or doubled; a remaining difference is pooled or repeated.
    Vector to map: Linear to the channels, the same at every position. `released` is MST-Distill's code, which uses
    one-dimensional convolutions of 4 weights between vectors, and treats (C, 1, 1) as a map.
    """
    flat = _is_vector(mine, released), _is_vector(theirs, released=False)
    if flat == (True, True):
        body: nn.Module = (
            _StridedVector(mine[0], theirs[0])
            if released
            else nn.Sequential(nn.Flatten(), nn.Linear(mine[0], theirs[0]))
        )
    elif flat[1]:
        channels, height, width = _as_map_shape(mine)
        convolution = nn.Conv2d(channels, 16, 3, padding=1)
        body = nn.Sequential(convolution, nn.Flatten(), nn.Linear(16 * height * width, theirs[0]))
    elif flat[0]:
        body = nn.Sequential(nn.Flatten(), nn.Linear(mine[0], theirs[0]))
    else:
        body = _convolution(_as_map_shape(mine), _as_map_shape(theirs))
    return Regressor(body, mine, theirs)


class Regressor(nn.Module):
    """A body, followed by a resize to the teacher's shape."""

    def __init__(self, body: nn.Module, mine: Shape, theirs: Shape) -> None:
        super().__init__()
        self.body = body
        self.mine, self.theirs = mine, theirs

    def forward(self, feature: Float[Tensor, "B *mine"]) -> Float[Tensor, "B *theirs"]:
        """The regressed feature, in the teacher's shape."""
        value: Tensor = self.body(as_map(feature))
        size = _as_map_shape(self.theirs)
        if value.ndim == 2:
            value = value.view(*value.shape, 1, 1).expand(-1, -1, *size[1:])
        return resized(value, size[1:]).reshape(len(value), *self.theirs)


class ChannelRegressor(nn.Module):
    """Three bias-free pointwise convolutions with ReLU between them, to the teacher's channels: VID's regressor."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out, out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out, out, 1, bias=False),
        )

    def forward(self, feature: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """The predicted feature of the teacher."""
        predicted: Tensor = self.body(feature)
        return predicted


def resized(value: Float[Tensor, "B C H1 W1"], size: tuple[int, ...]) -> Float[Tensor, "B C H W"]:
    """A map resized to this height and width: each side repeated (nearest) if too small, pooled if too large."""
    larger = (max(value.shape[2], size[0]), max(value.shape[3], size[1]))
    if tuple(value.shape[2:]) != larger:
        value = functional.interpolate(value, larger, mode="nearest")
    return value if tuple(value.shape[2:]) == tuple(size) else functional.adaptive_avg_pool2d(value, (size[0], size[1]))


class _StridedVector(nn.Module):
    """A vector as one channel: Conv1d(1, 1, 3), strided towards the output length, then nearest."""

    def __init__(self, length: int, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted
        self.convolution = nn.Conv1d(1, 1, 3, padding=1, stride=max(length // wanted, 1))

    def forward(self, feature: Float[Tensor, "B L 1 1"]) -> Float[Tensor, "B W"]:
        """The vector with its output length."""
        value = self.convolution(feature.flatten(1).unsqueeze(1))
        return functional.interpolate(value, self.wanted, mode="nearest").squeeze(1)


def _is_vector(shape: Shape, released: bool) -> bool:
    return len(shape) == 1 if released else prod(shape[1:]) == 1


def _as_map_shape(shape: Shape) -> Shape:
    """The shape that `as_map` gives for this shape."""
    return (*shape, *[1] * (3 - len(shape))) if len(shape) <= 3 else (shape[0], prod(shape[1:-1]), shape[-1])


def _convolution(mine: Shape, theirs: Shape) -> nn.Module:
    ratios = [size / wanted for size, wanted in zip(mine[1:], theirs[1:], strict=True)]
    if all(ratio >= 2 for ratio in ratios):
        return nn.Conv2d(mine[0], theirs[0], 3, stride=int(min(ratios)), padding=1)
    if all(ratio <= 0.5 for ratio in ratios):
        return nn.ConvTranspose2d(mine[0], theirs[0], 3, stride=2, padding=1, output_padding=1)
    return nn.Conv2d(mine[0], theirs[0], 3, padding=1)
