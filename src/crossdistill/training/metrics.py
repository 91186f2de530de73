"""Metrics of every kind of task, computed by torchmetrics, which is imported on first use.

Accuracy and cross-entropy are computed here, in double precision. Balanced accuracy is averaged here: torchmetrics'
macro average counts classes that occur in predictions only. Columns of a regression are averaged, each over its rows.
"""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from crossdistill.data.metric_names import OF_PROBABILITIES, chosen_metrics
from crossdistill.training.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from crossdistill.training.predictions import Predictions

# Metric -> function of `torchmetrics.functional.classification` and its settings besides the number of classes.
_OF_CLASSES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "balanced-accuracy": ("multiclass_recall", {"average": "none"}),
        "macro-f1": ("multiclass_f1_score", {"average": "macro"}),
        "kappa": ("multiclass_cohen_kappa", {}),
        "matthews": ("multiclass_matthews_corrcoef", {}),
    }
)
_OF_LABELS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "map": ("multilabel_average_precision", {"average": "none"}),
        "micro-f1": ("multilabel_f1_score", {"average": "micro"}),
        "macro-f1": ("multilabel_f1_score", {"average": "macro"}),
    }
)
IGNORED = -1


def measure(metric: str, predictions: Predictions) -> float:
    """A metric of `METRICS` over all rows at once; NaN without rows, or without the probabilities that it needs.

    Raises:
        SettingError: the predictions' task has no such metric.
    """
    chosen_metrics(predictions.task, (metric,))
    if not len(predictions):
        return float("nan")
    if metric == "accuracy":
        return predictions.accuracy()
    if metric in OF_PROBABILITIES:
        return _of_probabilities(metric, predictions)
    if metric == "cross-entropy":
        return float(-predictions.scores().mean())
    if predictions.task == "regression":
        return _of_numbers(metric, predictions)
    if predictions.task == "multi-label":
        return _of_labels(metric, predictions)
    return _of_classes(metric, predictions)


def _of_probabilities(metric: str, predictions: Predictions) -> float:
    if predictions.probabilities is None:
        return float("nan")
    functions = {"ece": expected_calibration_error, "nll": negative_log_likelihood, "brier": brier_score}
    return functions[metric](predictions.probabilities, predictions.classes())


def _of_classes(metric: str, predictions: Predictions) -> float:
    from torchmetrics.functional import classification

    function, settings = _OF_CLASSES[metric]
    targets = predictions.classes()
    value: Tensor = getattr(classification, function)(
        predictions.predicted, targets, num_classes=predictions.columns, **settings
    )
    # Values by class are averaged over the classes that occur in the targets (sklearn's balanced_accuracy_score).
    return float(value if value.ndim == 0 else value[targets.unique()].mean())


def _of_labels(metric: str, predictions: Predictions) -> float:
    targets = predictions.targets.nan_to_num(nan=IGNORED).long()
    if metric == "subset-accuracy":
        return float(((predictions.predicted == targets) | (targets == IGNORED)).all(1).double().mean())
    from torchmetrics.functional import classification

    function, settings = _OF_LABELS[metric]
    with warnings.catch_warnings():
        # A label without a positive row is left out of the mean below.
        warnings.simplefilter("ignore")
        value: Tensor = getattr(classification, function)(
            predictions.probabilities, targets, num_labels=predictions.columns, ignore_index=IGNORED, **settings
        )
    # Average precision by label is averaged over the labels that have a positive row.
    return float(value if value.ndim == 0 else value[(targets == 1).any(0)].mean())


def _of_numbers(metric: str, predictions: Predictions) -> float:
    from torchmetrics.functional import regression

    values = []
    for predicted, targets in zip(predictions.predicted.T, predictions.targets.T, strict=True):
        known = ~targets.isnan()
        one, other = predicted[known].double(), targets[known].double()
        if metric == "mae":
            values.append(regression.mean_absolute_error(one, other))
        elif metric == "rmse":
            values.append(regression.mean_squared_error(one, other, squared=False))
        elif len(one) > 1:
            values.append(regression.r2_score(one, other))
    return float(torch.stack(values).mean()) if values else float("nan")
