"""Logits of a teacher in fewer bytes: the largest of each row, in float16 or one byte each, and the loss of that.

Of the largest K logits each row keeps its classes, and of all others one number, the logarithm of the sum of their
exponentials: at temperature 1 the rebuilt row has exactly their probability, spread evenly over their classes. One byte
stands for one of 256 values between a row's largest and its smallest kept logit. To hand data on with stored outputs of
teachers is the idea of the reinforced data sets of MobileCLIP2 (arXiv 2508.20691).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.errors import SettingError

LogitType = Literal["float32", "float16", "int8"]
LEVELS = 255
"""Steps between the largest and the smallest kept logit of a row, in one byte."""
TEMPERATURES = (1.0, 4.0)
"""Temperatures at which the loss is measured; 4 is that of most distillation recipes (Hinton et al. 2015)."""
_ROWS = 4096
"""Rows that are computed at a time."""

Parts = Mapping[str, Tensor]
"""The parts of compressed logits: `values` (R, K), and those of `classes` (R, K), `rest` (R,), `largest` (R,), `scale`
(R,) that the form has."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss at one temperature: KL of the rebuilt distribution to the full one over rows, nats."""

    temperature: float
    kl_mean: float
    kl_max: float


@dataclass(frozen=True, slots=True)
class MeasuredLoss:
    """What compression loses: KL at each of `TEMPERATURES`, and the fraction of rows with the same largest class."""

    at: tuple[Loss, ...]
    agreement: float


def compress(logits: Float[Tensor, "R C"], dtype: LogitType = "float32", top: int | None = None) -> dict[str, Tensor]:
    """The parts of logits (R, C) in a type, all of them or the `top` largest of each row; see the module.

    Raises:
        SettingError: `top` is less than 1, or a logit is too large for float16.
    """
    if top is not None and top < 1:
        raise SettingError(f"top: wanted at least 1 logit of each row, found {top}")
    made = [_compressed(part.float(), dtype, top) for part in logits.split(_ROWS)]
    return {name: torch.cat([part[name] for part in made]) for name in made[0]}


def _compressed(logits: Tensor, dtype: LogitType, top: int | None) -> dict[str, Tensor]:
    values, parts = logits, dict[str, Tensor]()
    if top is not None and top < logits.shape[1]:
        values, kept = logits.topk(top, 1)
        parts["classes"] = kept.to(index_type(logits.shape[1]))
        parts["rest"] = logits.scatter(1, kept, -torch.inf).logsumexp(1)
    if dtype == "int8":
        parts["largest"] = values.amax(1)
        below = parts["largest"][:, None] - values
        parts["scale"] = below.amax(1) / LEVELS
        # Equal values of a row have the scale 0.
        steps = below / parts["scale"].clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return {"values": steps.round().clamp(0, LEVELS).to(torch.uint8), **parts}
    stored = values.to(getattr(torch, dtype))
    if not bool(stored.isfinite().all()):
        raise SettingError(
            f"logits up to {float(values.abs().max()):.4g} do not fit into {dtype}; take float32 or int8"
        )
    return {"values": stored, **parts}


def index_type(classes: int) -> torch.dtype:
    """The smallest integer type for numbers of that many classes."""
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 2**15 else torch.int32


def rebuild(parts: Parts, classes: int) -> Float[Tensor, "B C"]:
    """The logits of all classes, float32, from the parts of some rows."""
    values = parts["values"].float()
    if "scale" in parts:
        values = parts["largest"][:, None] - parts["scale"][:, None] * values
    if "classes" not in parts:
        return values
    others = parts["rest"] - math.log(classes - values.shape[1])
    return others[:, None].repeat(1, classes).scatter(1, parts["classes"].long(), values)


def measure_loss(logits: Float[Tensor, "R C"], parts: Parts) -> MeasuredLoss:
    """The loss of compressed logits against all of them, in float64."""
    sums, largest = [0.0] * len(TEMPERATURES), [0.0] * len(TEMPERATURES)
    same = 0
    for start in range(0, len(logits), _ROWS):
        full = logits[start : start + _ROWS].double()
        again = rebuild({name: part[start : start + _ROWS] for name, part in parts.items()}, full.shape[1]).double()
        same += int((full.argmax(1) == again.argmax(1)).sum())
        for number, temperature in enumerate(TEMPERATURES):
            wanted, found = (full / temperature).log_softmax(1), (again / temperature).log_softmax(1)
            # Rounding can make the divergence of equal rows negative.
            rows = (wanted.exp() * (wanted - found)).sum(1).clamp(min=0)
            sums[number] += float(rows.sum())
            largest[number] = max(largest[number], float(rows.max()))
    count = max(len(logits), 1)
    at = tuple(Loss(t, total / count, most) for t, total, most in zip(TEMPERATURES, sums, largest, strict=True))
    return MeasuredLoss(at, same / count)
