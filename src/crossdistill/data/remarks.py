"""Description of a data set in a few lines, and remarks on its irregularities."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.data.row_source import Rows, bytes_in_memory, sources_in
from crossdistill.data.split import SPLITS

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
) -> tuple[str, ...]:
    """One sentence for each irregularity that limits the meaning of results."""
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
    for kind, ids in groups.items():
        shared = _shared(ids, splits)
        if shared:
            sentences.append(
                f"{shared} of {len(ids.unique())} groups of {kind!r} have rows in more than one split, so results say "
                f"less about a new {kind}"
            )
    return tuple(sentences)


def class_counts(targets: Tensor, classes: int, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of each class in each split."""
    return {
        split: torch.bincount(values[values != MISSING_TARGET], minlength=classes)
        for split, values in ((split, targets[rows]) for split, rows in splits.items())
    }


def described(
    name: str,
    inputs: Mapping[str, Rows],
    targets: Tensor,
    classes: Sequence[str],
    splits: Mapping[str, Tensor],
    *,
    groups: Mapping[str, Tensor],
    labelled: Tensor | None,
    present: Mapping[str, Tensor],
    how_split: str,
    remarks: Sequence[str],
) -> str:
    """The text of a data set's `repr`."""
    sources = sources_in(inputs)
    size = "" if len(sources) == len(inputs) else f", {_bytes(sum(map(bytes_in_memory, inputs.values())))}"
    lines = [f"Dataset {name!r}: {len(targets):,} rows{size}"]
    for modality, tensor in inputs.items():
        absent = f", absent in {int((~present[modality]).sum()):,} rows" if modality in present else ""
        read = f", read row by row from {type(tensor).__name__}" if modality in sources else ""
        form = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape[1:])}"
        lines.append(f"{modality}: {form}{read}{absent}")
    without = int((targets == MISSING_TARGET).sum())
    lines.append(f"{len(classes)} classes: {_names(classes)}" + (f"; {without:,} rows without" if without else ""))
    lines.append("splits: " + ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items()))
    if how_split:
        lines.append(how_split)
    if groups:
        lines.append("groups: " + ", ".join(f"{kind} {len(ids.unique()):,}" for kind, ids in groups.items()))
    if labelled is not None:
        train = splits["train"]
        known = labelled[train] & (targets[train] != MISSING_TARGET)
        lines.append(f"labels for the student: {int(known.sum()):,} of {len(train):,} training rows")
    return "\n  ".join([*lines, *(f"note: {remark}" for remark in remarks)])


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
