"""Classification metrics, computed by torchmetrics, which is imported on first use.

Balanced accuracy is averaged here: torchmetrics' macro average counts classes that occur in predictions only.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import Int64
from torch import Tensor

# Metric -> function of `torchmetrics.functional.classification` and its settings besides the number of classes.
METRICS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "accuracy": ("multiclass_accuracy", {"average": "micro"}),
        "balanced-accuracy": ("multiclass_recall", {"average": "none"}),
        "macro-f1": ("multiclass_f1_score", {"average": "macro"}),
        "kappa": ("multiclass_cohen_kappa", {}),
        "matthews": ("multiclass_matthews_corrcoef", {}),
    }
)


def measure(metric: str, predicted: Int64[Tensor, " N"], targets: Int64[Tensor, " N"], classes: int) -> float:
    """A metric of `METRICS` over all rows at once; NaN without rows."""
    if not len(targets):
        return float("nan")
    from torchmetrics.functional import classification

    function, settings = METRICS[metric]
    value: Tensor = getattr(classification, function)(predicted, targets, num_classes=classes, **settings)
    # Values by class are averaged over the classes that occur in the targets (sklearn's balanced_accuracy_score).
    return float(value if value.ndim == 0 else value[targets.unique()].mean())
