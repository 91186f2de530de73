"""Evaluation on a split: predictions without gradient, and a metric over all of them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendered import rendered, renderings_of
from crossdistill.data.row_source import costliest
from crossdistill.data.workers import Request
from crossdistill.errors import SettingError, nearest
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.recipe import Recipe
from crossdistill.student import load_student
from crossdistill.teacher import Teacher
from crossdistill.training.metrics import METRICS, measure


@dataclass(frozen=True, slots=True)
class Predictions:
    """A network's predictions, one per row of a split that has a target and for which its inputs are present.

    `ids`, `predicted` and `targets` have shape (N,), `probabilities` (N, C) or None.
    """

    ids: Int64[Tensor, " N"]
    predicted: Int64[Tensor, " N"]
    targets: Int64[Tensor, " N"]
    probabilities: Float[Tensor, "N C"] | None = None

    def accuracy(self) -> float:
        """Fraction of correct predictions; NaN without rows."""
        return float((self.predicted == self.targets).double().mean()) if len(self.targets) else float("nan")


def batches(
    dataset: Dataset,
    rows: Tensor,
    device: torch.device,
    size: int,
    *,
    only: Collection[str] | None = None,
    view: Tensor | None = None,
) -> Iterator[Batch]:
    """The rows in their order, in batches of `size` on a device; the last batch may be smaller.

    `only` names the modalities to fetch (None: all); `view` is the augmented view of each row (None: no augmentation).
    """
    parts = (slice(start, start + size) for start in range(0, len(rows), size))
    return dataset.batches(
        (Request(rows[part], only=only, view=None if view is None else view[part]) for part in parts), device
    )


def few_rows(
    dataset: Dataset,
    rows: Tensor,
    device: torch.device,
    *,
    only: Collection[str] | None = None,
    view: Tensor | None = None,
) -> Callable[[int], Batch]:
    """A function that returns a batch of so many rows, the longest ones, from which memory is measured."""

    def batch(number: int) -> Batch:
        places = costliest(dataset.inputs, rows, number)
        return dataset.batch(rows[places], only=only, view=None if view is None else view[places]).to(device)

    return batch


@torch.no_grad()
def predict(
    source: Callable[[Batch], Outputs],
    dataset: Dataset,
    rows: Tensor,
    device: torch.device,
    *,
    only: Collection[str] | None = None,
    probabilities: bool = False,
) -> Predictions:
    """Predicted classes of all rows that have a target and whose modalities are present.

    With `probabilities`, the softmax over the classes too. `only` names the modalities that the source reads (None: all
    are fetched).
    """
    ids, predicted, targets, softmax = [], [], [], []
    size = rows_at_once(source, few_rows(dataset, rows, device, only=only), len(rows), device)
    for batch in batches(dataset, rows, device, size, only=only):
        outputs = source(batch)
        assert batch.targets is not None
        known = outputs.of(batch.targets)
        keep = known != MISSING_TARGET
        logits = outputs.need(Signal.LOGITS)
        predicted.append(logits.argmax(1)[keep])
        targets.append(known[keep])
        ids.append(outputs.of(batch.ids)[keep])
        if probabilities:
            softmax.append(logits.movedim(1, -1)[keep].softmax(-1).cpu())
    empty = torch.zeros(0, dtype=torch.int64)

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).cpu() if parts else empty

    return Predictions(joined(ids), joined(predicted), joined(targets), torch.cat(softmax) if softmax else None)


class WithAccuracy:
    """A source that counts the correct predictions among the outputs that a method reads."""

    def __init__(self, source: Teacher) -> None:
        self.name, self.modalities, self.spec = source.name, source.modalities, source.spec
        self._source = source
        self.counts = torch.zeros(2, dtype=torch.float64)
        """Correct predictions, and predictions of rows with a target."""

    def __call__(self, batch: Batch) -> Outputs:
        """The outputs of the source."""
        outputs = self._source(batch)
        if outputs.logits is not None and batch.targets is not None:
            known = outputs.of(batch.targets)
            right, keep = outputs.logits.argmax(1) == known, known != MISSING_TARGET
            counts = torch.stack([(right & keep).sum(), keep.sum()]).double()
            self.counts = self.counts.to(counts.device) + counts
        return outputs

    def select(self, signals: Iterable[Signal]) -> Teacher:
        """The source restricted to these signals, without counting."""
        return self._source.select(signals)

    def sees(self, batch: Batch) -> Batch:
        """The rows for which the source's inputs are present."""
        return self._source.sees(batch)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The source's tail from this tap on."""
        return self._source.tail(tap)


def evaluate_folder(run: Path, recipe: Recipe, split: str, metric: str = "accuracy") -> dict[str, Any]:
    """A metric of a finished run's saved student on a split of its data.

    Raises:
        SettingError: the recipe's data has no such split, or there is no such metric.
        RunError: the folder holds no student.
    """
    if metric not in METRICS:
        raise SettingError(f"there is no metric {metric!r}; {nearest(metric, METRICS)}")
    student = load_student(run, recipe.student if isinstance(recipe.student, Network) else None)
    dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load()
    if split not in dataset.splits:
        raise SettingError(f"data {dataset.name!r} has no split {split!r}; {nearest(split, dataset.splits)}")
    dataset = rendered(dataset, renderings_of(student.inputs, dataset), student.network.name)
    rows = dataset.splits[split]
    predictions = predict(student.network, dataset, rows, torch.device("cpu"), only=student.network.reads)
    if metric == "accuracy":
        # In double precision, as the run computed it; torchmetrics computes in single precision.
        value = predictions.accuracy()
    else:
        value = measure(metric, predictions.predicted, predictions.targets, len(dataset.classes))
    return {"split": split, "metric": metric, "value": value, "rows": len(predictions.targets), "of": len(rows)}


def chance(dataset: Dataset, split: str = "test") -> Predictions:
    """Predictions of the most frequent class of the training split, for all rows with a target."""
    train = dataset.targets[dataset.splits["train"]]
    train = train[train != MISSING_TARGET]
    best = torch.bincount(train, minlength=len(dataset.classes)).argmax()
    rows = dataset.splits[split]
    rows = rows[dataset.targets[rows] != MISSING_TARGET]
    targets = dataset.targets[rows]
    return Predictions(rows, best.expand_as(targets), targets)
