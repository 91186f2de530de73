"""What a student predicts for one example: a class, labels or numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from crossdistill.batch import Task
from crossdistill.data.targets import TargetScale, decoded


@dataclass(frozen=True, slots=True)
class Prediction:
    """The student's prediction for one example: the class, and its probability (dimensionless).

    For multi-label `label` lists the labels above 1/2 and `probability` is the lowest probability of a decision; for a
    regression `label` is the numbers as text and `probability` NaN. `values` has the probability of each label, or the
    number of each column in its unit; it is empty for classes.
    """

    label: str
    probability: float
    values: Mapping[str, float] = field(default_factory=dict)


def predictions_of(
    task: Task, logits: Float[Tensor, "N C"], classes: Sequence[str], scale: TargetScale | None
) -> list[Prediction]:
    """The predictions of a network's outputs, one for each row."""
    if task in ("multi-label", "regression"):
        predicted, probabilities = decoded(task, logits, scale)
        each = predicted if probabilities is None else probabilities
        return [_of_columns(task, dict(zip(classes, row, strict=True))) for row in each.tolist()]
    best = logits.softmax(1).max(1)
    return [
        Prediction(classes[int(index)], float(value)) for index, value in zip(best.indices, best.values, strict=True)
    ]


def _of_columns(task: Task, values: Mapping[str, float]) -> Prediction:
    if task == "regression":
        return Prediction(", ".join(f"{name} {value:.6g}" for name, value in values.items()), float("nan"), values)
    labels = ", ".join(name for name, value in values.items() if value > 0.5)
    return Prediction(labels or "none", min(max(value, 1 - value) for value in values.values()), values)
