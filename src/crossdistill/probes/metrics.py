"""Scores of probes: accuracy, word error rate, weighted key score, R², and equal error rate of a verification."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crossdistill.errors import DataError, ShapeError

LOWER_IS_BETTER = frozenset({"wer", "eer"})
"""Metrics whose best value is 0."""

_NOTES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{note} {mode}" for mode in ("major", "minor") for note in _NOTES)
"""The 24 keys by class number: 12 major ones from C upwards by semitones, then the minor ones."""
SHARPS = MappingProxyType(
    {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb", "Cb": "B", "E#": "F", "B#": "C", "Fb": "E"}
)


def accuracy(predicted: Int64[Tensor, "N S"], targets: Int64[Tensor, "N S"]) -> float:
    """Fraction of rows in which all S slots are right."""
    return float((predicted == targets).all(1).double().mean())


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def word_error_rate(predicted: Sequence[str], spoken: Sequence[str]) -> float:
    """Edits of words over words spoken, over all texts together; it may exceed 1.

    Raises:
        ShapeError: the numbers of texts differ.
        DataError: the spoken texts have no word.
    """
    if len(predicted) != len(spoken):
        raise ShapeError(f"word error rate: {len(predicted)} predicted texts, and {len(spoken)} spoken ones")
    words = sum(len(text.split()) for text in spoken)
    if not words:
        raise DataError("word error rate: the spoken texts have no word")
    return sum(edit_distance(a.split(), b.split()) for a, b in zip(predicted, spoken, strict=True)) / words


def key_class(text: str) -> int:
    """The class number of a key such as "Eb minor", "C# maj" or "F" (major).

    Raises:
        DataError: it is no key.
    """
    note, _, mode = text.replace(":", " ").strip().partition(" ")
    note = note[:1].upper() + note[1:].replace("♯", "#").replace("♭", "b")
    if note.endswith("m") and not mode:
        note, mode = note[:-1], "minor"
    mode = {"": "major", "maj": "major", "min": "minor"}.get(mode.strip().lower(), mode.strip().lower())
    name = f"{SHARPS.get(note, note)} {mode}"
    if name not in KEYS:
        raise DataError(f"{text!r} is no key; wanted a note and a mode, such as 'Eb minor'")
    return KEYS.index(name)


def weighted_key_score(predicted: Int64[Tensor, " N"], targets: Int64[Tensor, " N"]) -> float:
    """The mean score of keys as in MIREX and mir_eval.

    1 for the key itself, 0.5 for the key a fifth above in the same mode, 0.3 for the relative key, 0.2 for the
    parallel one, else 0. Keys are classes of `KEYS`.
    """
    step, minor = (predicted - targets) % 12, (predicted >= 12, targets >= 12)
    alike = minor[0] == minor[1]
    # The relative minor lies nine semitones above its major; the relative major three above its minor.
    relative = ~alike & (step == torch.where(minor[1], 3, 9))
    scores = torch.zeros(len(predicted), dtype=torch.float64)
    scores[alike & (step == 0)] = 1.0
    scores[alike & (step == 7)] = 0.5
    scores[relative] = 0.3
    scores[~alike & (step == 0)] = 0.2
    return float(scores.mean())


def r2(predicted: Float[Tensor, "N C"], targets: Float[Tensor, "N C"]) -> tuple[float, ...]:
    """The coefficient of determination of each column: 1 - squared errors / squared deviations from the mean."""
    errors = (predicted.double() - targets.double()).square().sum(0)
    spread = (targets.double() - targets.double().mean(0)).square().sum(0)
    return tuple((1 - errors / spread.clamp(min=1e-12)).tolist())


def equal_error_rate(scores: Float[Tensor, " N"], same: Bool[Tensor, " N"]) -> float:
    """The rate at which as many pairs of one speaker are refused as pairs of two speakers are accepted.

    `scores` (N,) rise with the similarity of a pair, `same` (N,) marks pairs of one speaker. A pair is accepted from a
    threshold on. Between two thresholds both rates are interpolated linearly, so that the result is where the curve of
    the two rates meets the diagonal.

    Raises:
        DataError: there are not pairs of both kinds, or a score is NaN.
    """
    if bool(same.all()) or not bool(same.any()):
        raise DataError("equal error rate: wanted pairs of one speaker and pairs of two, found one kind alone")
    if bool(scores.isnan().any()):
        raise DataError("equal error rate: a score is NaN")
    order = scores.double().argsort(descending=True)
    ordered, truth = scores.double()[order], same[order]
    # A threshold lies between different scores only: equal ones are accepted together.
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    accepted = torch.cat([torch.zeros(1, dtype=torch.float64), (~truth).cumsum(0)[last].double() / (~truth).sum()])
    refused = torch.cat([torch.ones(1, dtype=torch.float64), 1 - truth.cumsum(0)[last].double() / truth.sum()])
    place = int((accepted >= refused).nonzero()[0, 0])
    gap = accepted - refused
    before, after = float(gap[place - 1]), float(gap[place])
    share = -before / (after - before)
    return float(accepted[place - 1] + share * (accepted[place] - accepted[place - 1]))


def class_score(metric: str) -> Callable[[Tensor, Tensor], float]:
    """The function of a metric of classes, of predicted and true classes (N, S)."""
    return _OF_CLASSES[metric]


_OF_CLASSES: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {"accuracy": accuracy, "key-score": lambda predicted, targets: weighted_key_score(predicted[:, 0], targets[:, 0])}
)
