"""Hides a part of the training labels from the student, the same part for equal seeds."""

from dataclasses import replace

import numpy as np
import torch

from crossdistill.data.dataset import Dataset
from crossdistill.data.targets import has_target, strata
from crossdistill.errors import SettingError


def hide_labels(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Keep this fraction of the training labels for the student, stratified by class.

    Deterministic for a seed and nested: the rows kept at 0.05 are among those kept at 0.1. Every class keeps at least
    one row if the fraction amounts to one row per class. Labels of validation and test rows are kept, teachers train
    on all labels, and the fingerprint does not change.

    Raises:
        SettingError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise SettingError(f"labelled: wanted a fraction in (0, 1], got {fraction}")
    if fraction == 1:
        return dataset
    train = dataset.splits["train"]
    before = torch.ones(len(dataset), dtype=torch.bool) if dataset.labelled is None else dataset.labelled
    usable = train[before[train] & has_target(dataset.targets[train])]
    numbers, _ = strata(dataset.targets, dataset.task)
    count_of = len(dataset.classes) if dataset.task == "classes" else int(numbers.max()) + 1
    kept = before.clone()
    kept[train] = False
    at_least = 1 if fraction * len(usable) >= count_of else 0
    for number in range(count_of):
        of_class = usable[numbers[usable] == number].numpy()
        order = np.random.default_rng([seed, number]).permutation(np.sort(of_class))
        count = min(len(of_class), max(at_least, round(fraction * len(of_class))))
        kept[torch.from_numpy(order[:count])] = True
    # The fingerprint stays: stages that do not use the hidden labels are shared with runs that hide none.
    return replace(dataset, labelled=kept)
