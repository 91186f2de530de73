"""The choice of the student's best epoch by a metric on the validation split, instead of by its loss."""

from collections.abc import Mapping

import torch

from crossdistill.data.metric_names import LOWER_IS_BETTER, OF_PROBABILITIES
from crossdistill.method import STUDENT
from crossdistill.outputs import Signal
from crossdistill.planning.plan import Job
from crossdistill.runtime.distributed import Devices
from crossdistill.training.evaluation import predict
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions
from crossdistill.training.step import Training


def with_metric(
    job: Job, training: Training, devices: Devices, validation: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The validation values with the stage's `select_by`, and the values whose lowest is the best of each part.

    Every rank predicts its share of the rows; the metric is of all of them.
    """
    metric = job.stage.select_by
    if metric is None:
        return dict(validation), dict(validation)
    rows = job.dataset.splits["validation"][devices.rank :: devices.ranks]
    training.eval_mode()
    source = job.student.select({Signal.LOGITS})
    likely = metric in OF_PROBABILITIES
    share = predict(source, job.dataset, rows, devices.device, only=job.reads, probabilities=likely)
    value = measure(metric, of_all_ranks(share, devices))
    training.train_mode()
    judged = {**validation, STUDENT: value if metric in LOWER_IS_BETTER else -value}
    return {**validation, metric: value}, judged


def of_all_ranks(share: Predictions, devices: Devices) -> Predictions:
    """The predictions of all ranks together."""
    each = [share.ids, share.predicted, share.targets]
    parts = devices.everyone(tuple(each if share.probabilities is None else [*each, share.probabilities]))
    # A rank without rows has no probabilities.
    ids, predicted, targets, *rest = (torch.cat(values) for values in zip(*parts, strict=False))
    return Predictions(ids, predicted, targets, rest[0] if rest else None, share.task, share.columns)
