"""How right class numbers are, in one number: by torchmetrics, which is imported on first use only.

One of them is not torchmetrics' own: its macro average counts classes that occur in predictions only.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import Int64
from torch import Tensor

# Names here -> function of `torchmetrics.functional.classification` and its settings beside the number of classes.
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
    """A metric of `METRICS` over all rows at once, dimensionless; NaN where there is no row."""
    if not len(targets):
        return float("nan")
    from torchmetrics.functional import classification

    function, settings = METRICS[metric]
    found: Tensor = getattr(classification, function)(predicted, targets, num_classes=classes, **settings)
    # Of values by class, the mean over those that occur in the targets (sklearn's balanced_accuracy_score).
    return float(found if found.ndim == 0 else found[targets.unique()].mean())
