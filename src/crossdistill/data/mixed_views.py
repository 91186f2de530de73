"""Mixed views: each training row with a part of another one, by mixup or CutMix, and the targets of both.

The other row and the parts are functions of the seed, the row's id and its view alone, so that outputs of frozen
networks for mixed rows can be banked.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.data.row_random import RowRandom
from crossdistill.errors import ShapeError
from crossdistill.runtime.hashing import derived_seed


@dataclass(frozen=True, slots=True)
class Mix:
    """For each row of a batch: the other row, the own part, and the box of the other one (CutMix).

    `box` is top, left, height and width in fractions of the picture; a row of mixup has none (NaN). View 0 is not
    mixed: its part is 1.
    """

    other: Int64[Tensor, " B"]
    part: Float[Tensor, " B"]
    box: Float[Tensor, "B 4"]


def drawn_mix(
    mixup: float,
    cutmix: float,
    *,
    seed: int,
    train: Int64[Tensor, " T"],
    ids: Int64[Tensor, " B"],
    view: Int64[Tensor, " B"],
    at_least_half: bool,
) -> Mix:
    """The mix of rows in their views: mixup by Beta(`mixup`, `mixup`), CutMix by `cutmix`, with both each row by one.

    `train` are the rows that others are drawn from. With `at_least_half`, a row keeps the larger part of itself.
    """
    random = RowRandom(derived_seed("view", seed, "mix"), ids, view)
    drawn, keys = random.uniform(4), RowRandom(derived_seed("view", seed, "part"), ids, view).whole()
    other = train[(drawn[:, 0] * len(train)).long().clamp(max=len(train) - 1)]
    cuts = drawn[:, 1] < (0.5 if mixup and cutmix else float(bool(cutmix)))
    strengths = torch.where(cuts, cutmix, mixup).tolist()
    parts = [np.random.default_rng(key).beta(s, s) for key, s in zip(keys.tolist(), strengths, strict=True)]
    part = torch.tensor(parts, dtype=torch.float32)
    if at_least_half:
        part = torch.maximum(part, 1 - part)
    part = torch.where(view == 0, 1.0, part)
    side = (1 - part).clamp(min=0).sqrt()
    box = torch.stack([drawn[:, 2] * (1 - side), drawn[:, 3] * (1 - side), side, side], 1)
    box[~cuts] = torch.nan
    return Mix(other, part, box)


def mixed(own: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"], mix: Mix) -> Float[Tensor, "B C H W"]:
    """Rows with a part of the other ones."""
    part = mix.part.view(-1, *[1] * (own.ndim - 1)).to(own.dtype)
    blended = part * own + (1 - part) * other
    cuts = ~mix.box[:, 0].isnan()
    if not bool(cuts.any()):
        return blended
    inside = _inside(own.shape[-2], mix.box[:, 0], mix.box[:, 2])[:, :, None]
    inside = inside & _inside(own.shape[-1], mix.box[:, 1], mix.box[:, 3])[:, None, :]
    pasted = torch.where(inside[:, None], other, own)
    return torch.where(cuts.view(-1, 1, 1, 1), pasted, blended)


def with_counted_parts(mix: Mix, height: int, width: int) -> Mix:
    """The mix with the own part of CutMix's rows as the part of the pixels that the box leaves, as published.

    Boxes end at whole pixels, so that their areas are not quite the drawn ones.
    """
    pasted = _inside(height, mix.box[:, 0], mix.box[:, 2]).sum(1) * _inside(width, mix.box[:, 1], mix.box[:, 3]).sum(1)
    return replace(mix, part=torch.where(mix.box[:, 0].isnan(), mix.part, 1 - pasted / (height * width)))


def mixed_targets(own: Int64[Tensor, " B"], other: Int64[Tensor, " B"], mix: Mix, classes: int) -> Float[Tensor, "B C"]:
    """The classes of both rows as a distribution, by their parts; NaN where one has no target.

    Raises:
        ShapeError: targets of another kind than classes.
    """
    if own.ndim != 1 or own.is_floating_point():
        raise ShapeError(f"mixup and CutMix mix classes, and targets are {own.dtype} {tuple(own.shape)}")
    known = (own != MISSING_TARGET) & (other != MISSING_TARGET)
    one, two = (torch.nn.functional.one_hot(ids.clamp(min=0), classes).float() for ids in (own, other))
    targets = mix.part[:, None] * one + (1 - mix.part[:, None]) * two
    return torch.where(known[:, None], targets, torch.nan)


def _inside(length: int, start: Float[Tensor, " B"], size: Float[Tensor, " B"]) -> Tensor:
    places = (torch.arange(length) + 0.5) / length
    return (places >= start[:, None]) & (places < (start + size)[:, None])
