"""Calibration of class probabilities: reliability bins, ECE, NLL, Brier score, and cells of confidence.

torchmetrics has the expected calibration error too (`multiclass_calibration_error`); tests compare the two. It is
computed here because the bins themselves are results (the reliability diagram, which torchmetrics does not return),
because it takes values that are no probabilities for logits without saying so, and because it sums in float32.
Values are reduced to one number for each row on the device of their probabilities, and counted in float64 on the CPU:
sums over bins on an accelerator depend on the order of its threads.

`probabilities` are (N, C), each row adding up to 1; `targets` are classes (N,), int64, on the same device.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import DataError, SettingError, ShapeError

BINS = 15
"""Bins of confidence of equal width, as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""
CERTAIN = 0.5
"""Largest probability from which on a prediction counts as confident: above it one class has more probability than all
others together. RichKD (arXiv 2511.09286, figure 1) uses such a threshold, whose value is not known here."""
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions whose confidence is in (`low`, `high`]; mean confidence and accuracy are NaN without rows."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Cells:
    """Numbers of predictions by correctness and confidence (RichKD, arXiv 2511.09286, figure 1)."""

    confident_correct: int
    confident_wrong: int
    unsure_correct: int
    unsure_wrong: int

    def change(self, reference: "Cells") -> dict[str, float]:
        """Relative change of each cell against that of a reference on the same rows, such as a teacher's.

        0.036 means 3.6 % more predictions than the reference; NaN where the reference has none.

        Raises:
            ShapeError: the two are of different numbers of rows.
        """
        rows = [sum(asdict(cells).values()) for cells in (self, reference)]
        if rows[0] != rows[1]:
            raise ShapeError(f"cells: wanted predictions of the same rows, found {rows[0]:,} and {rows[1]:,} rows")
        pairs = {cell.name: (getattr(self, cell.name), getattr(reference, cell.name)) for cell in fields(self)}
        return {name: own / other - 1 if other else math.nan for name, (own, other) in pairs.items()}


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well class probabilities state their own correctness on some rows."""

    rows: int
    accuracy: float
    ece: float
    nll: float
    brier: float
    cells: Cells
    bins: tuple[ReliabilityBin, ...]

    def as_data(self) -> dict[str, Any]:
        """All values as plain JSON values; a NaN is None."""
        values: dict[str, Any] = asdict(self)
        values["bins"] = [{name: _plain(value) for name, value in one.items()} for one in values["bins"]]
        return {name: _plain(value) for name, value in values.items()}


def calibration(probabilities: Tensor, targets: Tensor, *, bins: int = BINS, certain: float = CERTAIN) -> Calibration:
    """All measures of this module at once.

    Raises:
        ShapeError, DataError, SettingError: see `reliability` and `confidence_cells`.
    """
    found, cells = reliability(probabilities, targets, bins), confidence_cells(probabilities, targets, certain)
    right = cells.confident_correct + cells.unsure_correct
    return Calibration(
        rows=len(targets),
        accuracy=right / len(targets) if len(targets) else math.nan,
        ece=_gap(found),
        nll=negative_log_likelihood(probabilities, targets),
        brier=brier_score(probabilities, targets),
        cells=cells,
        bins=found,
    )


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """Mean difference of accuracy and confidence over bins of the largest probability; NaN without rows.

    Each bin weighs as many as it has rows (Guo et al. 2017, equation 3; Naeini et al., AAAI 2015).

    Raises:
        ShapeError, DataError, SettingError: see `reliability`.
    """
    return _gap(reliability(probabilities, targets, bins))


def reliability(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Rows, mean confidence and accuracy in `bins` intervals of confidence of equal width, the lowest first.

    Raises:
        ShapeError: probabilities are not (N, C), or the targets not (N,).
        DataError: values are not probabilities, or a target is no class; names the first row.
        SettingError: there is less than one bin.
    """
    if bins < 1:
        raise SettingError(f"bins: wanted at least 1, found {bins}")
    confidence, right = _top(probabilities, targets)
    # Right-closed intervals; torch.bucketize puts a value on an edge into the interval that the edge closes.
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1].contiguous())
    rows = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=value, minlength=bins) for value in (confidence, right.double())]
    means = [(total / rows).tolist() for total in sums]
    ends = edges.tolist()
    return tuple(map(ReliabilityBin, ends[:-1], ends[1:], rows.tolist(), *means))


def negative_log_likelihood(probabilities: Tensor, targets: Tensor) -> float:
    """Mean of minus the logarithm of the target's probability, nats; NaN without rows.

    A probability below the smallest normal float32 counts as that, since a softmax in float32 underflows to zero.

    Raises:
        ShapeError, DataError: see `reliability`.
    """
    _check(probabilities, targets)
    of_target = probabilities.gather(1, targets[:, None])[:, 0].cpu().double()
    return float(-of_target.clamp(min=torch.finfo(torch.float32).tiny).log().mean())


def brier_score(probabilities: Tensor, targets: Tensor) -> float:
    """Mean over rows of the squared distance of probabilities and one-hot target: 0 to 2; NaN without rows.

    Summed over classes, as Brier (1950) defines it; some libraries halve it or divide by the number of classes.

    Raises:
        ShapeError, DataError: see `reliability`.
    """
    _check(probabilities, targets)
    # |p - e_y|² = |p|² - 2 p_y + 1, without a one-hot matrix.
    squares = probabilities.double().square().sum(1) if not probabilities.is_mps else probabilities.square().sum(1)
    of_target = probabilities.gather(1, targets[:, None])[:, 0]
    return float((squares.cpu().double() - 2 * of_target.cpu().double() + 1).mean())


def confidence_cells(probabilities: Tensor, targets: Tensor, certain: float = CERTAIN) -> Cells:
    """Counts of correct and wrong predictions with a largest probability of at least `certain`, and below it.

    Raises:
        ShapeError, DataError: see `reliability`.
        SettingError: the threshold is not between 0 and 1.
    """
    if not 0 <= certain <= 1:
        raise SettingError(f"certain: wanted a probability from 0 to 1, found {certain}")
    confidence, right = _top(probabilities, targets)
    sure = confidence >= certain
    masks = (sure & right, sure & ~right, ~sure & right, ~sure & ~right)
    return Cells(*(int(mask.sum()) for mask in masks))


def _top(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each row, float64, and whether its class is the target, both on the CPU."""
    _check(probabilities, targets)
    confidence, predicted = probabilities.max(1)
    return confidence.cpu().double(), (predicted == targets).cpu()


def _gap(found: tuple[ReliabilityBin, ...]) -> float:
    total = sum(one.rows for one in found)
    gaps = [one.rows * abs(one.accuracy - one.confidence) for one in found if one.rows]
    return math.fsum(gaps) / total if total else math.nan


def _check(probabilities: Tensor, targets: Tensor) -> None:
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not probabilities.shape[1]:
        raise ShapeError(
            f"calibration: wanted probabilities (N, C) and targets (N,), found {tuple(probabilities.shape)} and "
            f"{tuple(targets.shape)}"
        )
    off = ~((probabilities >= 0).all(1) & ((probabilities.sum(1) - 1).abs() <= _SUM_TOLERANCE))
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise DataError(
            f"calibration, row {row}: wanted probabilities from 0 that add up to 1, found "
            f"{float(probabilities[row].min()):.4g} to {float(probabilities[row].max()):.4g} with the sum "
            f"{float(probabilities[row].sum()):.4g}; take logits through softmax(1) first"
        )
    classes = probabilities.shape[1]
    unknown = (targets < 0) | (targets >= classes)
    if bool(unknown.any()):
        row = int(unknown.nonzero()[0])
        raise DataError(
            f"calibration, row {row}: wanted a class from 0 to {classes - 1}, found {int(targets[row])}; leave out "
            "rows without a label"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
