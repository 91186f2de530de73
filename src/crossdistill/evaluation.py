"""How well a network does on a split: predictions without gradient, and a metric over all of them at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.data.dataset import Dataset
from crossdistill.outputs import Outputs, Want

ROWS_AT_ONCE = 1024
"""Rows of one pass without gradient: large enough to be fast, small enough for any memory."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network said of the rows of a split: class numbers and targets, row by row."""

    ids: Int64[Tensor, " N"]
    predicted: Int64[Tensor, " N"]
    targets: Int64[Tensor, " N"]

    def accuracy(self) -> float:
        """Fraction of rows that are right, dimensionless."""
        return float((self.predicted == self.targets).double().mean()) if len(self.targets) else float("nan")


def batches(dataset: Dataset, rows: Tensor, device: torch.device, size: int = ROWS_AT_ONCE) -> Iterator[Batch]:
    """Rows in their order, as whole batches on a device."""
    for part in rows.split(size):
        yield dataset.batch(part).to(device)


@torch.no_grad()
def predict(source: Callable[[Batch], Outputs], dataset: Dataset, rows: Tensor, device: torch.device) -> Predictions:
    """Class numbers for all rows that have a target and whose modalities are present."""
    ids, predicted, targets = [], [], []
    for batch in batches(dataset, rows, device):
        outputs = source(batch)
        assert batch.targets is not None
        known = outputs.of(batch.targets)
        keep = known != MISSING_TARGET
        predicted.append(outputs.need(Want.LOGITS).argmax(1)[keep])
        targets.append(known[keep])
        ids.append(outputs.of(batch.ids)[keep])
    return Predictions(*(torch.cat(part).cpu() for part in (ids, predicted, targets)))


def chance(dataset: Dataset, split: str = "test") -> float:
    """Accuracy of always naming the class that is most frequent in the training split."""
    train = dataset.targets[dataset.splits["train"]]
    train = train[train != MISSING_TARGET]
    best = torch.bincount(train, minlength=len(dataset.classes)).argmax()
    targets = dataset.targets[dataset.splits[split]]
    targets = targets[targets != MISSING_TARGET]
    return float((targets == best).double().mean())
