"""Predictions of a network on a split, of any kind of task, and the score of each row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import Task
from crossdistill.data.dataset import Dataset
from crossdistill.data.targets import has_target


@dataclass(frozen=True, slots=True)
class Predictions:
    """A network's predictions, one per row of a split that has a target and for which its inputs are present.

    `ids` have shape (N,), `probabilities` (N, C) or None. `predicted` and `targets` are classes (N,); for other tasks
    `targets` are (N, C) with NaN where missing, and `predicted` are classes (N,) for soft labels, 0 and 1 (N, C) for
    multi-label, and numbers (N, C) in the unit of the targets for a regression.
    """

    ids: Int64[Tensor, " N"]
    predicted: Tensor
    targets: Tensor
    probabilities: Float[Tensor, "N C"] | None = None
    task: Task = "classes"
    columns: int = 0
    """C, the number of classes or columns."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.targets)

    def classes(self) -> Int64[Tensor, " N"]:
        """The targets as class numbers: of soft labels the most probable class."""
        return self.targets.argmax(1) if self.task == "soft" else self.targets

    def accuracy(self) -> float:
        """Fraction of correct predictions of a class; NaN without rows."""
        return float((self.predicted == self.classes()).double().mean()) if len(self) else float("nan")

    def scores(self) -> Float[Tensor, " N"]:
        """A score of each row, larger is better, whose mean can be compared between networks on the same rows.

        Classes: 1 if the prediction is correct, else 0. Soft labels: minus the cross-entropy, nats. Multi-label: the
        fraction of the known labels that are right. A regression: minus the squared error, mean over the known
        columns, each divided by its variance over these rows, so that columns of any unit count equally.
        """
        if self.task in ("classes", "none"):
            return (self.predicted == self.targets).double()
        known = ~self.targets.isnan()
        wanted = self.targets.nan_to_num().double()
        if self.task == "soft":
            assert self.probabilities is not None
            logs = self.probabilities.double().clamp(min=torch.finfo(torch.float32).tiny).log()
            return (wanted * logs).sum(1)
        if self.task == "multi-label":
            right = ((self.predicted == wanted) & known).double()
        else:
            count = known.sum(0).clamp(min=1)
            mean = (wanted * known).sum(0) / count
            variance = ((wanted - mean).square() * known).sum(0) / count
            right = -(self.predicted.double() - wanted).square() * known / torch.where(variance > 0, variance, 1.0)
        return right.sum(1) / known.sum(1).clamp(min=1)


def chance(dataset: Dataset, split: str = "test") -> Predictions:
    """The best predictions without inputs, from the training split, for all rows with a target.

    The most frequent class, the mean of soft labels or numbers, the frequency of each label.
    """
    train = dataset.targets[dataset.splits["train"]]
    train = train[has_target(train)]
    rows = dataset.splits[split]
    rows = rows[has_target(dataset.targets[rows])]
    targets, columns = dataset.targets[rows], len(dataset.classes)
    if dataset.task in ("classes", "none"):
        best = torch.bincount(train, minlength=columns).argmax()
        return Predictions(rows, best.expand_as(targets), targets, columns=columns)
    mean = train.nanmean(0).expand(len(rows), -1)
    if dataset.task == "regression":
        return Predictions(rows, mean, targets, None, dataset.task, columns)
    predicted = mean.argmax(1) if dataset.task == "soft" else (mean > 0.5).long()
    return Predictions(rows, predicted, targets, mean, dataset.task, columns)
