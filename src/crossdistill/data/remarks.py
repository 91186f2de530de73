"""Description of a data set in a few lines, and remarks on its irregularities."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Task
from crossdistill.data.row_source import bytes_in_memory, sources_in
from crossdistill.data.split import SPLITS
from crossdistill.data.targets import has_target, text_of

if TYPE_CHECKING:
    from crossdistill.data.dataset import Dataset

SHOWN = 8
"""Names that are listed; the rest are counted."""


def untrained(targets: Tensor, classes: Sequence[str], splits: Mapping[str, Tensor]) -> list[str]:
    """Classes with rows in validation or test and none in training."""
    counts = class_counts(targets, len(classes), splits)
    used = counts["validation"] + counts["test"] > 0
    return [classes[number] for number in ((counts["train"] == 0) & used).nonzero().flatten().tolist()]


def remarks(
    targets: Tensor,
    classes: Sequence[str],
    splits: Mapping[str, Tensor],
    groups: Mapping[str, Tensor],
    labelled: Tensor | None,
    task: Task = "classes",
) -> tuple[str, ...]:
    """One sentence for each irregularity that limits the meaning of results."""
    shared = _shared_groups(splits, groups)
    if task == "multi-label":
        return (*_label_remarks(targets, classes, splits), *shared)
    if task in ("regression", "soft"):
        return tuple(shared)
    sentences = []
    counts = class_counts(targets, len(classes), splits)
    total = torch.bincount(targets[targets != MISSING_TARGET], minlength=len(classes))

    def names(chosen: Tensor) -> str:
        return _names([classes[number] for number in chosen.nonzero().flatten().tolist()])

    if len(targets) and bool((total > 0).any()):
        if bool((total == 0).any()):
            sentences.append(f"no row is of {names(total == 0)}; networks have an output for it that nothing trains")
        for split in SPLITS:
            missing = (counts[split] == 0) & (total > 0)
            if bool(missing.any()):
                sentences.append(f"the {split} split has no row of {names(missing)}")
    if labelled is not None:
        kept = class_counts(targets.where(labelled, MISSING_TARGET), len(classes), splits)["train"]
        hidden = (kept == 0) & (counts["train"] > 0)
        if bool(hidden.any()):
            sentences.append(f"the student has no label of {names(hidden)}")
    return (*sentences, *shared)


def _shared_groups(splits: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> list[str]:
    numbers = {kind: _shared(ids, splits) for kind, ids in groups.items()}
    return [
        f"{number} of {len(groups[kind].unique())} groups of {kind!r} have rows in more than one split, so results say "
        f"less about a new {kind}"
        for kind, number in numbers.items()
        if number
    ]


def _label_remarks(targets: Tensor, classes: Sequence[str], splits: Mapping[str, Tensor]) -> list[str]:
    """One sentence for each split in which some labels have no positive row, so that nothing is learnt or measured."""
    without = {split: (targets[rows] == 1).sum(0) == 0 for split, rows in splits.items()}
    return [
        f"the {split} split has no row with {_names([classes[n] for n in none.nonzero().flatten().tolist()])}"
        for split, none in without.items()
        if bool(none.any())
    ]


def class_counts(targets: Tensor, classes: int, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of each class in each split."""
    return {
        split: torch.bincount(values[values != MISSING_TARGET], minlength=classes)
        for split, values in ((split, targets[rows]) for split, rows in splits.items())
    }


def described(data: "Dataset") -> str:
    """The text of a data set's `repr`."""
    sources = sources_in(data.inputs)
    size = "" if len(sources) == len(data.inputs) else f", {_bytes(sum(map(bytes_in_memory, data.inputs.values())))}"
    lines = [f"Dataset {data.name!r}: {len(data.targets):,} rows{size}"]
    for modality, tensor in data.inputs.items():
        absent = f", absent in {int((~data.present[modality]).sum()):,} rows" if modality in data.present else ""
        read = f", read row by row from {type(tensor).__name__}" if modality in sources else ""
        form = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape[1:])}"
        lines.append(f"{modality}: {form}{read}{absent}")
    without = int((~has_target(data.targets)).sum())
    rest = f"; {without:,} rows without" if without else ""
    if data.task in ("classes", "none"):
        lines.append(f"{len(data.classes)} classes: {_names(data.classes)}" + rest)
    else:
        words = text_of(data.task, data.targets, data.classes[:SHOWN], data.scale)
        more = f" and {len(data.classes) - SHOWN:,} more" if len(data.classes) > SHOWN else ""
        lines.append(f"{data.task}: " + ", ".join(f"{name!r} {text}" for name, text in words.items()) + more + rest)
    lines.append("splits: " + ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items()))
    if data.how_split:
        lines.append(data.how_split)
    if data.groups:
        lines.append("groups: " + ", ".join(f"{kind} {len(ids.unique()):,}" for kind, ids in data.groups.items()))
    if data.labelled is not None:
        train = data.splits["train"]
        known = data.labelled[train] & has_target(data.targets[train])
        lines.append(f"labels for the student: {int(known.sum()):,} of {len(train):,} training rows")
    return "\n  ".join([*lines, *(f"note: {remark}" for remark in data.remarks())])


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _shared(ids: Tensor, splits: Mapping[str, Tensor]) -> int:
    """Number of groups with rows in more than one split."""
    pairs = [torch.stack([ids[rows], torch.full_like(rows, number)]) for number, rows in enumerate(splits.values())]
    group_and_split = torch.cat(pairs, dim=1).unique(dim=1)
    return int((group_and_split[0].unique(return_counts=True)[1] > 1).sum())


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
