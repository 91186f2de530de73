"""Merging of networks of one shape: interpolation, task vectors and TIES, on their state dicts.

Task vectors: Ilharco et al., ICLR 2023. TIES: Yadav et al., NeurIPS 2023. Speech and music students merged so:
Ritter-Gutierrez et al., Interspeech 2025 (arXiv 2505.13270), whose l1 + l2 = 1 is plain interpolation, since the common
base cancels. Their code trims only the model of the lower weight, and swaps the two weights where music is the main
model; here every task vector is trimmed, as Yadav et al. do, and each weight belongs to its model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from crossdistill.errors import SettingError, ShapeError, nearest

State = Mapping[str, Tensor]
Method = Literal["linear", "task", "ties"]
METHODS: tuple[Method, ...] = get_args(Method)

SUM_TOLERANCE = 1e-6
KEEP, SCALE = 0.2, 1.0
"""The share that "ties" keeps, and the factor of task vectors, where none is given."""


def merge(
    states: Sequence[State],
    weights: Sequence[float],
    *,
    base: State | None = None,
    method: Method = "linear",
    layers: Mapping[str, Sequence[float]] | None = None,
    keep: float | None = None,
    scale: float | None = None,
) -> dict[str, Tensor]:
    """One state dict of several, computed in float64 and given in the types of the first.

    "linear": Σ wᵢ θᵢ, with Σ wᵢ = 1. "task": θ₀ + λ Σ wᵢ (θᵢ - θ₀). "ties": of each task vector the `keep` largest
    entries stay (over all tensors together); each entry gets the sign of the weighted sum; entries of that sign are
    averaged by weight, and λ times the result is added to θ₀.

    Args:
        states: the networks, of equal keys and shapes.
        weights: one for each network.
        base: θ₀, their common ancestor, for "task" and "ties" alone.
        method: how they are merged.
        layers: weights of the tensors whose names begin so ("encoder.layers.0."); the longest name decides.
        keep: share of entries that "ties" keeps; None: 0.2.
        scale: λ of "task" and "ties"; None: 1.

    Raises:
        SettingError: numbers of weights differ from those of networks, do not sum to 1 without a base, or a name of
            `layers` begins no tensor; the method needs a base, or does not read a setting that is given.
        ShapeError: keys, shapes or whole numbers differ; names the first.
    """
    check_read(method, base=base is not None, keep=keep, scale=scale)
    check_weights(len(states), weights, method, base, layers or {}, list(states[0]) if states else [])
    for number, other in enumerate([*states[1:], *([] if base is None else [base])], 2):
        check_alike(states[0], other, f"network {number}" if number <= len(states) else "the base")
    chosen = {key: _weights_of(key, weights, layers or {}) for key in states[0]}
    share = KEEP if keep is None else keep
    least = [_threshold(state, base, share) for state in states] if method == "ties" and base is not None else []
    merged = {}
    for key, first in states[0].items():
        if not first.is_floating_point():
            merged[key] = first.clone()
            continue
        shares = torch.tensor(chosen[key], dtype=torch.float64).view(-1, *[1] * first.ndim)
        values = torch.stack([state[key].double() for state in states])
        if method == "linear":
            result = (shares * values).sum(0)
        else:
            assert base is not None
            start = base[key].double()
            task = values - start
            if method == "ties":
                task = _elected(task, torch.tensor(least, dtype=torch.float64).view_as(shares), shares)
            else:
                task = (shares * task).sum(0)
            result = start + (SCALE if scale is None else scale) * task
        merged[key] = result.to(first.dtype)
    return merged


def check_read(
    method: Method,
    *,
    base: bool = False,
    keep: float | None = None,
    scale: float | None = None,
    permute: bool = False,
) -> None:
    """Refuse settings that a method does not read, as if they had an effect; None and False are not given.

    Raises:
        SettingError: names the setting and the methods that read it.
    """
    if base and method == "linear":
        raise SettingError(
            "merge: base is given, and method 'linear' reads none: it interpolates; give method='task' or 'ties', or "
            "leave base out"
        )
    if scale is not None and method == "linear":
        raise SettingError(
            f"merge: scale={scale:g} is the factor of task vectors, and method 'linear' has none; give method='task' "
            "or 'ties' and base, or leave scale out"
        )
    if scale is not None and not math.isfinite(scale):
        raise SettingError(f"merge: scale={scale:g}; wanted a finite number")
    if keep is not None and method != "ties":
        raise SettingError(
            f"merge: keep={keep:g} is the share that 'ties' keeps of task vectors, and the method is {method!r}; give "
            "method='ties', or leave keep out"
        )
    if permute and method != "linear":
        raise SettingError(
            f"merge: permute moves the units of the networks, and the base of {method!r} stays in its order, so that "
            "their differences would belong to other units; give method='linear', or leave permute out"
        )


def check_alike(first: State, other: State, who: str) -> None:
    """Check that two networks have one shape.

    Raises:
        ShapeError: a key is missing in one, or a shape or a whole number differs; names the first such key.
    """
    for key in first:
        if key not in other:
            raise ShapeError(f"merge: {who} lacks {key!r}; {nearest(key, list(other)[:200])}")
        if first[key].shape != other[key].shape:
            raise ShapeError(
                f"merge: {key!r} has shape {tuple(first[key].shape)}, and {tuple(other[key].shape)} in {who}; networks "
                "of one shape are merged"
            )
        if not first[key].is_floating_point() and not torch.equal(first[key], other[key]):
            raise ShapeError(f"merge: {key!r} holds other whole numbers in {who}; they cannot be averaged")
    for key in other:
        if key not in first:
            raise ShapeError(f"merge: {who} has {key!r}, which the first network lacks")


def check_weights(
    count: int,
    weights: Sequence[float],
    method: Method,
    base: State | None,
    layers: Mapping[str, Sequence[float]],
    keys: Sequence[str],
) -> None:
    """Check the weights of so many networks, and those of tensors whose names begin with a name in `layers`.

    Raises:
        SettingError: numbers of weights and networks differ, one is not finite, sums are not 1 without a base, or no
            tensor is named so.
    """
    if count < 2 or len(weights) != count:
        raise SettingError(
            f"merge: {count} networks and {len(weights)} weights; give one weight for each of two or more"
        )
    if method != "linear" and base is None:
        raise SettingError(f"merge: method {method!r} needs the common ancestor of the networks; give base")
    for name, shares in {"": weights, **layers}.items():
        where = f"layers {name!r}: " if name else ""
        if len(shares) != count:
            raise SettingError(f"merge: {where}{count} networks and {len(shares)} weights")
        if not all(map(math.isfinite, shares)):
            raise SettingError(
                f"merge: {where}weights {', '.join(f'{weight:g}' for weight in shares)}; wanted finite ones"
            )
        if method == "linear" and abs(sum(shares) - 1) > SUM_TOLERANCE:
            raise SettingError(
                f"merge: {where}weights {', '.join(f'{weight:g}' for weight in shares)} sum to {sum(shares):g}, and an "
                "interpolation needs 1; give base and method='task' for other sums"
            )
        if not any(key.startswith(name) for key in keys):
            raise SettingError(f"merge: no tensor's name begins with {name!r}; {nearest(name, list(keys)[:200])}")


def _weights_of(key: str, weights: Sequence[float], layers: Mapping[str, Sequence[float]]) -> list[float]:
    fitting = [name for name in layers if key.startswith(name)]
    return list(layers[max(fitting, key=len)] if fitting else weights)


def _task_vectors(state: State, base: State) -> Iterator[Tensor]:
    for key, value in state.items():
        if value.is_floating_point():
            yield (value.float() - base[key].float()).abs().flatten()


def _threshold(state: State, base: State, keep: float) -> float:
    """The smallest magnitude among the entries of a task vector that stay."""
    if not 0 < keep <= 1:
        raise SettingError(f"merge: keep={keep:g}; wanted a share above 0, of 1 at most")
    sizes = torch.cat(list(_task_vectors(state, base)))
    drop = len(sizes) - max(1, round(keep * len(sizes)))
    return 0.0 if drop == 0 else float(sizes.kthvalue(drop + 1).values)


def _elected(task: Tensor, least: Tensor, weights: Tensor) -> Tensor:
    """Trimmed task vectors (K, ...) as one: the mean by weight of the entries that have the elected sign."""
    # Magnitudes are compared in float32, in which the thresholds were found.
    trimmed = torch.where(task.float().abs() >= least.float(), task, 0.0)
    sign = (weights * trimmed).sum(0).sign()
    agree = (trimmed.sign() == sign) & (trimmed != 0)
    total = (weights * agree).sum(0)
    return torch.where(total != 0, (weights * trimmed * agree).sum(0) / torch.where(total != 0, total, 1.0), 0.0)
