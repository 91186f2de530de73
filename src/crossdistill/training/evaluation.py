"""How well a network does on a split: predictions without gradient, and a metric over all of them at once."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.data.dataset import Dataset
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
    """What a network said of the rows of a split that have a target and that it sees, row by row.

    `probabilities` (N, C) are there where they were wanted.
    """

    ids: Int64[Tensor, " N"]
    predicted: Int64[Tensor, " N"]
    targets: Int64[Tensor, " N"]
    probabilities: Float[Tensor, "N C"] | None = None

    def accuracy(self) -> float:
        """Fraction of rows that are right, dimensionless."""
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
    """Rows in their order, as whole batches of `size` rows on a device.

    `only` names the modalities to fetch (None: all), `view` says in which view each row is wanted (None: as they are).
    """
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield dataset.batch(rows[part], only=only, view=None if view is None else view[part]).to(device)


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
    """Class numbers for all rows that have a target and whose modalities are present.

    With `probabilities`, those of all classes beside them. `only` names the modalities that the source reads (None: all
    are fetched).
    """
    ids, predicted, targets, likely = [], [], [], []
    size = rows_at_once(source, lambda n: dataset.batch(rows[:n], only=only).to(device), len(rows), device)
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
            likely.append(logits.movedim(1, -1)[keep].softmax(-1).cpu())
    none = torch.zeros(0, dtype=torch.int64)
    one, two, three = (torch.cat(part).cpu() if part else none for part in (ids, predicted, targets))
    return Predictions(one, two, three, torch.cat(likely) if likely else None)


class Overheard:
    """A source whose answers are compared with the targets on their way to a method."""

    def __init__(self, source: Teacher) -> None:
        self.name, self.modalities, self.spec = source.name, source.modalities, source.spec
        self._source = source
        self.counts = torch.zeros(2, dtype=torch.float64)
        """Right answers, and answers that have a target."""

    def __call__(self, batch: Batch) -> Outputs:
        """What the source gives."""
        outputs = self._source(batch)
        if outputs.logits is not None and batch.targets is not None:
            known = outputs.of(batch.targets)
            right, keep = outputs.logits.argmax(1) == known, known != MISSING_TARGET
            counts = torch.stack([(right & keep).sum(), keep.sum()]).double()
            self.counts = self.counts.to(counts.device) + counts
        return outputs

    def select(self, signals: Iterable[Signal]) -> Teacher:
        """The source, asked for these things; no longer listened to."""
        return self._source.select(signals)

    def sees(self, batch: Batch) -> Batch:
        """The rows that the source looks at."""
        return self._source.sees(batch)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The source's own."""
        return self._source.tail(tap)


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
    rows = dataset.splits[split]
    found = predict(student.network, dataset, rows, torch.device("cpu"), only=student.network.reads)
    # Single precision would not repeat the number that the run wrote.
    own = metric == "accuracy"
    value = found.accuracy() if own else measure(metric, found.predicted, found.targets, len(dataset.classes))
    return {"split": split, "metric": metric, "value": value, "rows": len(found.targets), "of": len(rows)}


def chance(dataset: Dataset, split: str = "test") -> Predictions:
    """What always naming the class that is most frequent in the training split says of the rows with a target."""
    train = dataset.targets[dataset.splits["train"]]
    train = train[train != MISSING_TARGET]
    best = torch.bincount(train, minlength=len(dataset.classes)).argmax()
    rows = dataset.splits[split]
    rows = rows[dataset.targets[rows] != MISSING_TARGET]
    targets = dataset.targets[rows]
    return Predictions(rows, best.expand_as(targets), targets)
