"""Distances between predicted and real hidden states of a teacher, over the valid frames of each row."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

HiddenLoss = Literal["l1", "l2", "usad", "cosine", "bernoulli"]
"""l1, l2: mean absolute or squared difference, plus a multiple of -log sigmoid(cos) (DistilHuBERT, arXiv 2110.01900,
and 2506.07237). usad: mean absolute difference, plus a multiple of 1 - cos (USAD, 2506.18843). cosine: 1 - cos alone.
bernoulli: the target's channels are separate probabilities and the prediction their logits; KL divergence in nats."""


def valid_frames(frames: Int64[Tensor, " B"], total: int) -> Bool[Tensor, "B T"]:
    """The mask of the first `frames` of `total` positions."""
    return torch.arange(total, device=frames.device) < frames.unsqueeze(1)


def hidden_state_distance(
    prediction: Float[Tensor, "B N T D"],
    target: Float[Tensor, "B N T D"],
    valid: Bool[Tensor, "B T"] | None = None,
    kind: HiddenLoss = "l1",
    cosine: float = 1.0,
) -> Float[Tensor, "B N"]:
    """The distance of each layer, a mean over a row's valid frames and all channels; 0 for a row without frames.

    In the unit of the features (l2: its square), plus `cosine` times a dimensionless term of the angle, which the kinds
    cosine and bernoulli do not have. Values in other frames are never used, NaN included. With rows of equal length,
    its mean over rows and layers is the published mean over rows, layers, frames and channels. Computed in float32 at
    least, also under autocast: 1 - cos and an entropy subtract nearly equal numbers.
    """
    if valid is not None:
        there = valid[:, None, :, None]
        prediction, target = prediction.where(there, 0.0), target.where(there, 0.0)
    with torch.autocast(prediction.device.type, enabled=False):
        value = _of_frames(_exact(prediction), _exact(target), kind, cosine)
    if valid is None:
        return value.mean(-1)
    counts = valid.sum(1).clamp_min(1).unsqueeze(1)
    return value.where(valid.unsqueeze(1), 0.0).sum(-1) / counts


def _exact(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _of_frames(prediction: Tensor, target: Tensor, kind: HiddenLoss, cosine: float) -> Tensor:
    if kind == "bernoulli":
        return _bernoulli_divergence(prediction, target).mean(-1)
    if kind == "cosine":
        return 1 - functional.cosine_similarity(prediction, target, dim=-1)
    difference = prediction - target
    size = (difference.square() if kind == "l2" else difference.abs()).mean(-1)
    if not cosine:
        return size
    angle = functional.cosine_similarity(prediction, target, dim=-1)
    return size + cosine * (1 - angle if kind == "usad" else -functional.logsigmoid(angle))


def _bernoulli_divergence(logits: Tensor, target: Tensor) -> Tensor:
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # The target's own entropy moves no gradient, and makes 0 the least value.
    return cross + torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)


def pooled_frames(
    values: Float[Tensor, "B N T D"], valid: Bool[Tensor, "B T"] | None, bins: int
) -> Float[Tensor, "B N P D"]:
    """The valid frames of each row, averaged in `bins` parts as adaptive average pooling does, in float32 at least.

    Where there are fewer frames than parts, neighbouring parts share frames.
    """
    rows, _, total, _ = values.shape
    if valid is None:
        valid = torch.ones(rows, total, dtype=torch.bool, device=values.device)
    length = valid.sum(1, keepdim=True)
    part = torch.arange(bins, device=values.device).unsqueeze(0)
    starts, ends = part * length // bins, -(-(part + 1) * length // bins)
    frame = torch.arange(total, device=values.device)
    inside = (frame >= starts.unsqueeze(2)) & (frame < ends.unsqueeze(2))
    exact = _exact(values)
    share = inside.to(exact.dtype) / inside.sum(2, keepdim=True).clamp_min(1)
    with torch.autocast(values.device.type, enabled=False):
        return share.unsqueeze(1) @ exact.where(valid[:, None, :, None], 0.0)


def barlow_distance(
    prediction: Float[Tensor, "B N P D"],
    target: Float[Tensor, "B N P D"],
    across: float = 5e-5,
    within: float = 5e-6,
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    """Correlation of predicted and real channels over the rows, made the identity (arXiv 2505.13270, L_CL).

    Channels are standardised over the rows for each layer and position; C is their cross-correlation and A the
    prediction's own correlation, each with divisor B - 1. The mean over layers and positions of
    sum_i (C_ii - 1)² / 10 + across · sum_(i≠j) C_ij² / 100 + within · sum_(i≠j) A_ij² / 50,000; dimensionless.
    All positions of a batch belong to its rows, so rows of other lengths are pooled first. 0 for less than two rows.
    """
    rows = len(prediction)
    if rows < 2:
        return prediction.sum() * 0
    prediction, target = _exact(prediction), _exact(target)
    total = prediction.new_zeros(())
    with torch.autocast(prediction.device.type, enabled=False):
        for layer in range(prediction.shape[1]):
            # One layer at a time: a matrix of D² numbers for each position.
            mine, theirs = (_standard(value[:, layer].transpose(0, 1), eps) for value in (prediction, target))
            total = total + _barlow_of_layer(mine, theirs, across, within).mean()
    return total / prediction.shape[1]


def _barlow_of_layer(mine: Tensor, theirs: Tensor, across: float, within: float) -> Tensor:
    """The distance at each position (P,), of standardised channels (P, B, D)."""
    cross, own = (mine.transpose(1, 2) @ other / (mine.shape[1] - 1) for other in (theirs, mine))
    same = cross.diagonal(dim1=1, dim2=2)
    outside = cross.square().sum((1, 2)) - same.square().sum(1)
    others = own.square().sum((1, 2)) - own.diagonal(dim1=1, dim2=2).square().sum(1)
    return (same - 1).square().sum(1) / 10 + across * outside / 100 + within * others / 50_000


def _standard(value: Float[Tensor, "P B D"], eps: float) -> Tensor:
    centred = value - value.mean(1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) / (value.shape[1] - 1) + eps).sqrt()


def at_frame_rate(
    values: Float[Tensor, "B N T D"], frames: Int64[Tensor, " B"] | None, ratio: float, total: int
) -> Float[Tensor, "B N S D"]:
    """Frames of a teacher at the student's rate: linear interpolation at the centres of `total` frames.

    `ratio` is the teacher's rate divided by the student's (75 Hz / 50 Hz = 1.5). Only a row's own `frames` are read.
    Places are float32 for any type of the values: 16 bits do not tell neighbouring frames of a clip apart.
    """
    if ratio == 1:
        return values
    known = torch.full((len(values),), values.shape[2], device=values.device) if frames is None else frames
    last = (known - 1).clamp_min(0).unsqueeze(1)
    centres = (torch.arange(total, device=values.device, dtype=torch.float32) + 0.5) * ratio - 0.5
    place = torch.minimum(centres.clamp_min(0), last.float())
    low = place.floor().long()
    high = torch.minimum(low + 1, last)

    def at(index: Tensor) -> Tensor:
        where = index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
        return values.gather(2, where)

    return at(low).lerp(at(high), (place - low).to(values.dtype)[:, None, :, None])
