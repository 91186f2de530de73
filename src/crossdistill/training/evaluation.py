"""Evaluation on a split: predictions without gradient, and a metric over all of them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.metric_names import METRICS, OF_PROBABILITIES, chosen_metrics
from crossdistill.data.rendered import rendered, renderings_of
from crossdistill.data.row_source import costliest
from crossdistill.data.targets import decoded, has_target
from crossdistill.data.workers import Request
from crossdistill.errors import SettingError, nearest
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.recipe import Recipe
from crossdistill.report import RESULTS
from crossdistill.student import load_student
from crossdistill.teacher import Teacher
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions


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
    """Predictions of all rows that have a target and whose modalities are present.

    With `probabilities`, those of classes too; other tasks always have theirs. `only` names the modalities that the
    source reads (None: all are fetched).
    """
    ids, predicted, targets, likely = [], [], [], []
    task, columns = dataset.task, len(dataset.classes)
    size = rows_at_once(source, few_rows(dataset, rows, device, only=only), len(rows), device)
    for batch in batches(dataset, rows, device, size, only=only):
        outputs = source(batch)
        assert batch.targets is not None
        keep = has_target(outputs.of(batch.targets))
        logits = outputs.need(Signal.LOGITS)
        values, each = decoded(task, logits[keep], dataset.scale)
        predicted.append(values)
        ids.append(outputs.of(batch.ids)[keep])
        targets.append(dataset.targets[ids[-1].cpu()])
        if each is not None and (probabilities or task != "classes"):
            likely.append(each.cpu())
    empty = torch.zeros(0, dtype=torch.int64)

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).cpu() if parts else empty

    each = torch.cat(likely) if likely else None
    return Predictions(joined(ids), joined(predicted), joined(targets), each, task, columns)


class WithAccuracy:
    """A source that counts the correct predictions among the outputs that a method reads."""

    def __init__(self, source: Teacher) -> None:
        self.name, self.modalities, self.spec = source.name, source.modalities, source.spec
        self._source = source
        self.network = getattr(source, "network", None)
        self.counts = torch.zeros(2, dtype=torch.float64)
        """Correct predictions, and predictions of rows with a target."""

    def __call__(self, batch: Batch) -> Outputs:
        """The outputs of the source."""
        outputs = self._source(batch)
        if outputs.logits is not None and batch.targets is not None and batch.task in ("classes", "soft"):
            known = outputs.of(batch.targets)
            keep = has_target(known)
            right = outputs.logits.argmax(1) == (known.argmax(1) if batch.task == "soft" else known)
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


def evaluate_folder(run: Path, recipe: Recipe, split: str, metric: str | None = None) -> dict[str, Any]:
    """A metric of a finished run's saved student on a split of its data; by default the main one of the run.

    Raises:
        SettingError: the recipe's data has no such split or no targets, or there is no such metric.
        RunError: the folder holds no student.
    """
    every = dict.fromkeys(name for names in METRICS.values() for name in names)
    if metric is not None and metric not in every:
        raise SettingError(f"there is no metric {metric!r}; {nearest(metric, every)}")
    student = load_student(run, recipe.student if isinstance(recipe.student, Network) else None)
    dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load()
    if dataset.task == "none":
        raise SettingError(
            f"eval: data {dataset.name!r} have no targets (their task is none), so that no metric is defined; the "
            f"validation loss is in {run / RESULTS}, and `crossdistill probe {run} --task TASK --data FOLDER` measures "
            "such a student"
        )
    if split not in dataset.splits:
        raise SettingError(f"data {dataset.name!r} has no split {split!r}; {nearest(split, dataset.splits)}")
    dataset = rendered(dataset, renderings_of(student.inputs, dataset), student.network.name)
    rows = dataset.splits[split]
    metric = metric or chosen_metrics(dataset.task, recipe.metrics)[0]
    device, likely = torch.device("cpu"), metric in OF_PROBABILITIES
    predictions = predict(student.network, dataset, rows, device, only=student.network.reads, probabilities=likely)
    value = measure(metric, predictions)
    return {"split": split, "metric": metric, "value": value, "rows": len(predictions), "of": len(rows)}
