"""The metrics of each kind of targets, by name: which exist, which a run computes by default, and which fall."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from crossdistill.batch import Task
from crossdistill.errors import SettingError, nearest

OF_PROBABILITIES = frozenset({"ece", "nll", "brier"})
"""Metrics of classes that need the probability of each class; see `training.calibration`."""
LOWER_IS_BETTER = frozenset({"mae", "rmse", "cross-entropy"}) | OF_PROBABILITIES
_OF_CLASSES = ("balanced-accuracy", "macro-f1", "kappa", "matthews")

METRICS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {
        "classes": ("accuracy", *_OF_CLASSES, "ece", "nll", "brier"),
        "multi-label": ("map", "micro-f1", "macro-f1", "subset-accuracy"),
        "regression": ("r2", "mae", "rmse"),
        "soft": ("accuracy", "cross-entropy", *_OF_CLASSES),
        "none": (),
    }
)
"""The metrics of each task, the main one first."""
NAMES = frozenset(name for names in METRICS.values() for name in names)
DEFAULTS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {**METRICS, "classes": ("accuracy",), "soft": ("accuracy", "cross-entropy")}
)
"""The metrics of a run whose recipe names none."""


def chosen_metrics(task: Task, wanted: Sequence[str], where: str = "metrics") -> tuple[str, ...]:
    """The metrics of a recipe, the main one first: those that it names, or those of the task.

    Raises:
        SettingError: the task has no metric of that name; the message has the nearest.
    """
    for metric in wanted:
        if metric not in METRICS[task]:
            raise SettingError(
                f"{where}: targets of the kind {task!r} have no metric {metric!r}; {nearest(metric, METRICS[task])}"
            )
    return tuple(dict.fromkeys(wanted)) or DEFAULTS[task]
