"""Checks of the kind of a data set's targets: the methods, metrics and test rows that it needs."""

from collections.abc import Mapping, Sequence

from crossdistill.data.augmentation import Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.metric_names import chosen_metrics
from crossdistill.data.targets import has_target
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.method import Method
from crossdistill.methods.logit_shapes import FOR_ANY_TARGETS
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec
from crossdistill.planning.preflight import data_spec, seen_rows
from crossdistill.stage import Stage


def built_for_task(stage: Stage, student: OutputSpec, teachers: Mapping[str, OutputSpec], dataset: Dataset) -> Method:
    """The stage's method, if it supports the kind of the data's targets.

    Raises:
        ApplicabilityError: it does not; names the kinds that it supports, and methods for these targets.
    """
    kind = f"data {dataset.name!r} has targets of the kind {dataset.task!r}"
    try:
        method = stage.method.build(student, teachers, data_spec(dataset))
    except ApplicabilityError as error:
        if dataset.task == "classes":
            raise
        raise ApplicabilityError(f"{error} ({kind})") from error
    if stage.select_by is not None:
        if stage.select != "best" or student.logits is None:
            raise ApplicabilityError(
                "select_by chooses the student's best epoch: set select='best', and give it logits"
            )
        chosen_metrics(dataset.task, (stage.select_by,), "select_by")
    if dataset.task not in method.tasks:
        offer = {"multi-label": "kd (form='sigmoid')", "none": "kd with frozen teachers"}.get(dataset.task, "kd")
        raise ApplicabilityError(
            f"{stage.method.name} is for targets of the kind {' or '.join(map(repr, sorted(method.tasks)))}, and "
            f"{kind}; {offer} and methods that compare features learn from those ({', '.join(FOR_ANY_TARGETS)})"
        )
    _check_mixed(stage, method, dataset)
    return method


def _check_mixed(stage: Stage, method: Method, dataset: Dataset) -> None:
    """Check that a method learns from the distributions that targets of mixed rows are.

    Raises:
        ApplicabilityError: it does not; says how rows are mixed without their targets.
    """
    views = dataset.augmentation
    if not isinstance(views, Variations) or not views.mixes or views.mixed_targets == "own":
        return
    weighs = getattr(stage.method, "class_weights", None) is not None
    if dataset.task != "classes" or "soft" not in method.tasks or weighs:
        what = "cutmix" if views.cutmix else "mixup"
        raise ApplicabilityError(
            f"data.augmentation.{what} makes a distribution of the targets of two rows, and {stage.method.name} is for "
            f"{'weighted classes' if weighs else ' or '.join(map(repr, sorted(method.tasks)))} here, with data of "
            f"{dataset.task!r}; set "
            "data.augmentation.mixed_targets=own, which mixes the inputs alone, or leave it out"
        )


def check_tested(network: Network, dataset: Dataset, metrics: Sequence[str] = ()) -> list[str]:
    """Faults: metrics that the task does not have, and no test row with a target and outputs of the student."""
    try:
        chosen_metrics(dataset.task, metrics)
    except SettingError as error:
        return [str(error)]
    rows = dataset.splits["test"]
    if bool((seen_rows(dataset, network) & has_target(dataset.targets))[rows].any()):
        return []
    return [
        f"data: no row of the test split is one that {network.name} reads and that has a target, so the student cannot "
        "be evaluated; put such rows there"
    ]
