"""Translators: map a student's feature to the positions and the width of a teacher's (RADIO, Theia)."""

from math import isqrt, prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.errors import SettingError
from crossdistill.nets.standardisation import Standardisation, Standardise

Head = Literal["linear", "mlp", "conv", "tokens"]
"""A linear map; Linear, LayerNorm, GELU, Linear (RADIO); two convolutions of 3 positions a side, with LayerNorm and
GELU between them (as in Theia); or learned queries, one for each of the teacher's positions, which attend to the
student's positions."""


def grid_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The positions of a feature (without the batch): () of a vector (D,), (T,) of tokens (T, D), (H, W) of a map."""
    return shape[:1] if len(shape) == 2 else shape[1:]


def width_of(shape: tuple[int, ...]) -> int:
    """The numbers at one position: D of a vector (D,) and of tokens (T, D), C of a map (C, H, W)."""
    return shape[1] if len(shape) == 2 else shape[0]


def by_position(feature: Float[Tensor, "B *shape"]) -> Float[Tensor, "B P D"]:
    """A vector (B, D), tokens (B, T, D) or a map (B, C, H, W) as a row of vectors, one for each position."""
    if feature.ndim == 3:
        return feature
    return feature.flatten(2).transpose(1, 2) if feature.ndim > 3 else feature.unsqueeze(1)


class Translation(nn.Module):
    """The translator of a pair of features (shapes without the batch), and the standardisation of the teacher's.

    `skipped` are leading tokens of both that are left out; None: both features are averaged over all positions.
    """

    def __init__(
        self,
        head: Head,
        mine: tuple[int, ...],
        theirs: tuple[int, ...],
        standardise: Standardise = "none",
        *,
        hidden: int | None = None,
        skipped: tuple[int, int] | None = (0, 0),
    ) -> None:
        super().__init__()
        self.skipped = skipped
        mine, theirs = (_kept(shape, None if skipped is None else skipped[i]) for i, shape in enumerate((mine, theirs)))
        self.translate = translator(head, mine, theirs, hidden)
        self.standardise = Standardisation(standardise, width_of(theirs))

    def forward(self, student: Float[Tensor, "B *mine"]) -> Float[Tensor, "B P D"]:
        """The student's feature, translated to the teacher's standardised one."""
        translated: Tensor = self.translate(self._positions(student, 0))
        return translated

    def of_teacher(self, feature: Float[Tensor, "B *theirs"]) -> Float[Tensor, "B P D"]:
        """The teacher's feature by position, not yet standardised."""
        return self._positions(feature, 1)

    def _positions(self, feature: Tensor, side: int) -> Tensor:
        value = by_position(feature)
        return value.mean(1, keepdim=True) if self.skipped is None else value[:, self.skipped[side] :]


def _kept(shape: tuple[int, ...], skipped: int | None) -> tuple[int, ...]:
    """The shape of a feature without its leading tokens, or that of its mean.

    Raises:
        SettingError: leading tokens of a feature that has no tokens, or only those.
    """
    if skipped is None:
        return (width_of(shape),)
    if skipped and (len(shape) != 2 or shape[0] <= skipped):
        raise SettingError(
            f"prefix_tokens: a feature of shape {shape} has no {skipped} tokens to leave out; set it to 0"
        )
    return (shape[0] - skipped, *shape[1:]) if skipped else shape


def translator(head: Head, mine: tuple[int, ...], theirs: tuple[int, ...], hidden: int | None = None) -> nn.Module:
    """A translator between features of two shapes, on `by_position`; `hidden` defaults to the larger width."""
    wide = hidden or max(width_of(mine), width_of(theirs))
    if head == "tokens":
        return TokenTranslator(width_of(mine), prod(grid_of(theirs)), width_of(theirs), wide)
    return Translator(head, mine, theirs, wide)


class Translator(nn.Module):
    """A head applied at each of the teacher's positions, after the student's positions are resampled to those."""

    def __init__(self, head: Head, mine: tuple[int, ...], theirs: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.mine, self.theirs = _comparable(grid_of(mine), grid_of(theirs))
        width, out = width_of(mine), width_of(theirs)
        self.convolves = head == "conv" and prod(self.theirs) > 1
        if head == "linear":
            self.body: nn.Module = nn.Linear(width, out)
        elif self.convolves:
            kind = nn.Conv2d if len(self.theirs) == 2 else nn.Conv1d
            between = (_Channels(nn.LayerNorm(hidden)), nn.GELU())
            self.body = nn.Sequential(kind(width, hidden, 3, padding=1), *between, kind(hidden, out, 3, padding=1))
        else:
            self.body = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, feature: Float[Tensor, "B P D"]) -> Float[Tensor, "B Q E"]:
        """The feature at the teacher's positions and in its width."""
        value = resampled(feature, self.mine, self.theirs)
        if not self.convolves:
            translated: Tensor = self.body(value)
            return translated
        maps: Tensor = self.body(value.transpose(1, 2).unflatten(2, self.theirs))
        return maps.flatten(2).transpose(1, 2)


class TokenTranslator(nn.Module):
    """One learned query for each of the teacher's positions attends to the student's positions; then an MLP."""

    def __init__(self, width: int, positions: int, out: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(positions, hidden) / hidden**0.5)
        self.norm = nn.LayerNorm(width)
        self.keys, self.values = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.body = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, feature: Float[Tensor, "B P D"]) -> Float[Tensor, "B Q E"]:
        """The feature at the teacher's positions and in its width."""
        seen = self.norm(feature)
        attention = (self.queries @ self.keys(seen).transpose(1, 2) / self.queries.shape[1] ** 0.5).softmax(-1)
        translated: Tensor = self.body(self.queries + attention @ self.values(seen))
        return translated


class _Channels(nn.Module):
    """A layer over the last dimension, applied to the channels of a map."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, feature: Tensor) -> Tensor:
        value: Tensor = self.layer(feature.movedim(1, -1))
        return value.movedim(-1, 1)


def resampled(
    feature: Float[Tensor, "B P D"], mine: tuple[int, ...], theirs: tuple[int, ...]
) -> Float[Tensor, "B Q D"]:
    """The values at the positions of another grid: interpolated linearly to more of them, pooled to fewer.

    A grid () is the mean of all positions, or the same value at each of them.
    """
    if mine == theirs:
        return feature
    if len(feature) == 0 or not mine:
        return feature[:, :1].expand(-1, prod(theirs), -1)
    if not theirs:
        return feature.mean(1, keepdim=True)
    value = feature.transpose(1, 2).unflatten(2, mine)
    larger = tuple(map(max, mine, theirs))
    if larger != mine:
        mode = "bilinear" if len(mine) == 2 else "linear"
        value = functional.interpolate(value, larger, mode=mode, align_corners=False)
    if larger != theirs:
        pool = nn.AdaptiveAvgPool2d(theirs) if len(mine) == 2 else nn.AdaptiveAvgPool1d(theirs[0])
        value = pool(value)
    positions: Tensor = value.flatten(2).transpose(1, 2)
    return positions


def _comparable(mine: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both grids with equally many sides: a square number of tokens is a square beside a map, else a map is a line."""
    if len(mine) == len(theirs) or not mine or not theirs:
        return mine, theirs
    line = mine if len(mine) == 1 else theirs
    side = isqrt(line[0])
    if side * side == line[0]:
        return ((side, side), theirs) if len(mine) == 1 else (mine, (side, side))
    return (prod(mine),), (prod(theirs),)
