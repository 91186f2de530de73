"""Teachers' entropy and agreement on validation rows without labels, where accuracy cannot be measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from crossdistill.data.dataset import Dataset
from crossdistill.outputs import Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.runtime.progress import counted
from crossdistill.teacher import TeacherBase
from crossdistill.training.evaluation import batches

UNIFORM = 0.98
"""Mean entropy, as a fraction of its largest value, from which on predictions say as little as guesses."""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A teacher's predictions for rows: the class of each (-1: it does not see the row), and their mean entropy.

    `entropy` is a fraction of its largest value, the logarithm of the number of classes.
    """

    predicted: Tensor
    entropy: float

    @property
    def fault(self) -> str | None:
        """What is wrong with such predictions; None if nothing is."""
        seen = self.predicted[self.predicted >= 0]
        if self.entropy >= UNIFORM:
            return f"its predictions are as uncertain as guesses (entropy {self.entropy:.3f} of at most 1)"
        if len(seen) > 1 and len(seen.unique()) == 1:
            return f"it predicts class {int(seen[0])} for each of {counted(len(seen), 'row')}"
        return None


@torch.no_grad()
def without_labels(teacher: TeacherBase, dataset: Dataset, rows: Tensor, device: torch.device) -> Unlabelled:
    """The predictions of a teacher for some rows."""
    source = teacher.select({Signal.LOGITS})
    needed = source.inputs_needed
    size = rows_at_once(source, lambda number: dataset.batch(rows[:number], only=needed).to(device), len(rows), device)
    predicted, total, count = torch.full((len(rows),), -1), 0.0, 0
    for number, batch in enumerate(batches(dataset, rows, device, size, only=needed)):
        outputs = source(batch)
        places = outputs.of(torch.arange(len(batch), device=device)).cpu() + number * size
        logits = outputs.need(Signal.LOGITS).double()
        predicted[places] = logits.argmax(1).cpu()
        total += float(torch.special.entr(logits.softmax(1)).sum())
        count += len(logits)
    classes = (teacher.spec.logits or (2,))[0]
    return Unlabelled(predicted, total / max(count, 1) / math.log(max(classes, 2)))


def agreement_text(found: Mapping[str, Unlabelled]) -> str:
    """One line: the entropy of each teacher, and the fraction of rows on which each pair agrees."""
    parts = [f"{name} entropy {one.entropy:.3f} of at most 1" for name, one in found.items()]
    for (name, one), (other, two) in combinations(found.items(), 2):
        both = (one.predicted >= 0) & (two.predicted >= 0)
        if bool(both.any()):
            agreed = float((one.predicted == two.predicted)[both].double().mean())
            parts.append(f"{name} and {other} agree on {agreed:.3f} of {counted(int(both.sum()), 'row')}")
    return "; ".join(parts)


def faults_of(
    found: Mapping[str, Unlabelled], classes: Sequence[str], causes: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    """Each teacher whose predictions teach nothing, with the reason and the likely cause: its own of `causes`."""
    cause = (
        "its input may be prepared otherwise here than for its training (scaling, normalisation, channels), its "
        f"weights may be untrained, or its classes may not be those of the data ({', '.join(classes[:4])}, ...)"
    )
    return [(name, f"{one.fault}: {causes.get(name) or cause}") for name, one in found.items() if one.fault is not None]
