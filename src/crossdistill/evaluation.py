"""How well a network does on a split: predictions without gradient, and a metric over all of them at once."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError, nearest
from crossdistill.metrics import METRICS, measure
from crossdistill.network import Network
from crossdistill.outputs import Outputs, Want
from crossdistill.recipe import Recipe
from crossdistill.student import load_student

ROWS_AT_ONCE = 1024
"""Rows of one pass without gradient, at most: large enough to be fast."""
PASS_BYTES = 2**25
"""What is read and asked for in one pass takes no more: inside, networks hold a hundred times as much."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network said of the rows of a split: class numbers and targets, row by row."""

    ids: Int64[Tensor, " N"]
    predicted: Int64[Tensor, " N"]
    targets: Int64[Tensor, " N"]

    def accuracy(self) -> float:
        """Fraction of rows that are right, dimensionless."""
        return float((self.predicted == self.targets).double().mean()) if len(self.targets) else float("nan")


def batches(
    dataset: Dataset,
    rows: Tensor,
    device: torch.device,
    *,
    only: Collection[str] | None = None,
    asked_bytes: int = 0,
    view: Tensor | None = None,
) -> Iterator[Batch]:
    """Rows in their order, as whole batches on a device; `only` names the modalities to fetch (None: all).

    `view` says in which view each row is wanted (None: as they are). A batch has up to `ROWS_AT_ONCE` rows, and fewer
    where a row's inputs, with the `asked_bytes` that networks are asked for each row, are large.
    """
    read = [dataset.inputs[name] for name in dataset.inputs if only is None or name in only]
    row_bytes = asked_bytes + sum(tensor.shape[1:].numel() * tensor.element_size() for tensor in read)
    size = max(1, min(ROWS_AT_ONCE, PASS_BYTES // max(1, row_bytes)))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield dataset.batch(rows[part], only=only, view=None if view is None else view[part]).to(device)


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


def evaluate_folder(run: Path, recipe: Recipe, split: str, metric: str = "accuracy") -> dict[str, Any]:
    """A finished run's saved student on a split of its data.

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
    found = predict(student.network, dataset, dataset.splits[split], torch.device("cpu"))
    # Single precision would not repeat the number that the run wrote.
    own = metric == "accuracy"
    value = found.accuracy() if own else measure(metric, found.predicted, found.targets, len(dataset.classes))
    return {"split": split, "metric": metric, "value": value, "rows": len(found.targets)}


def chance(dataset: Dataset, split: str = "test") -> float:
    """Accuracy of always naming the class that is most frequent in the training split."""
    train = dataset.targets[dataset.splits["train"]]
    train = train[train != MISSING_TARGET]
    best = torch.bincount(train, minlength=len(dataset.classes)).argmax()
    targets = dataset.targets[dataset.splits[split]]
    targets = targets[targets != MISSING_TARGET]
    return float((targets == best).double().mean())
