"""Paired comparison of the methods of a grid: better, worse, or not distinguishable."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.compare.grid import Setting
from crossdistill.compare.results.collect import Answers, Collected
from crossdistill.compare.results.statistics import DRAWS, LEVEL, Difference, bootstrap, difference, holm, tally
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_source import read_one
from crossdistill.errors import RunError

ALONE, KD = "supervised", "kd"
"""The methods with which every method is compared."""

Samples = Callable[[str, int, NDArray[np.int64]], NDArray[np.int64]]
"""Sample number of each test row, for a student and a seed; rows with the same student input are one sample."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A method compared with another one, on the same student, labels, seeds and test samples."""

    setting: Setting
    against: Setting
    seeds: tuple[int, ...]
    samples: int
    difference: Difference
    p_holm: float
    wins: int
    """Number of seeds on which the method is better; the others are ties or losses."""
    ties: int

    @property
    def verdict(self) -> str:
        """The result in words, "better", "worse" or "not distinguishable", after Holm's correction."""
        if self.p_holm > 1 - LEVEL:
            return "not distinguishable"
        return "better" if self.difference.value > 0 else "worse"

    @property
    def found(self) -> Difference:
        """The old name of `difference`."""
        warnings.warn(
            "found is called difference now; the old name will be removed in version 0.2", DeprecationWarning, 2
        )
        return self.difference

    @property
    def losses(self) -> int:
        """Number of seeds on which the method is worse."""
        return len(self.seeds) - self.wins - self.ties

    def as_data(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return {
            **asdict(self.setting),
            "against": {"method": self.against.method, "teachers": self.against.teachers},
            "difference": self.difference.value,
            "low": self.difference.low,
            "high": self.difference.high,
            "p": self.difference.p,
            "p_holm": self.p_holm,
            "verdict": self.verdict,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "seeds": list(self.seeds),
            "test_samples": self.samples,
        }


@dataclass(frozen=True, slots=True)
class PairwiseResults:
    """All comparisons of a grid; controls are separate, since they test another hypothesis."""

    pairs: tuple[PairedDifference, ...]
    controls: tuple[PairedDifference, ...]
    """Each control against the student alone."""

    def of(self, setting: Setting, method: str) -> PairedDifference | None:
        """The comparison of a setting with a method; None if there is none."""
        pairs = (pair for pair in (*self.pairs, *self.controls) if pair.setting == setting)
        return next((pair for pair in pairs if pair.against.method == method), None)

    def as_data(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return {
            "level": LEVEL,
            "draws": DRAWS,
            "correction": "Holm, over all comparisons on one student at one fraction of labels",
            "pairs": [pair.as_data() for pair in self.pairs],
            "controls": [
                {**pair.as_data(), "exceeds": exceeds(pair), "control_upper": pair.difference.high}
                for pair in self.controls
            ],
        }


def exceeds(control: PairedDifference) -> bool:
    """Whether the upper confidence bound of a control exceeds the accuracy of the student alone."""
    return control.difference.high > 0


def compare_pairwise(collected: Collected, samples: Samples) -> PairwiseResults:
    """Compare every method with the student alone and with KD, for each student and label fraction."""
    pairs: list[PairedDifference] = []
    controls: list[PairedDifference] = []
    blocks = dict.fromkeys((setting.student, setting.labelled) for setting in collected.answers)
    for student, labelled in blocks:
        settings = [s for s in collected.answers if (s.student, s.labelled) == (student, labelled)]
        block = _block(settings, collected.answers, samples)
        family = [pair for pair in block if pair.setting.control is None]
        corrected = holm([pair.difference.p for pair in family])
        pairs += [replace(pair, p_holm=p) for pair, p in zip(family, corrected, strict=True)]
        controls += [pair for pair in block if pair.setting.control is not None]
    return PairwiseResults(tuple(pairs), tuple(controls))


def reference(setting: Setting, method: str, among: Sequence[Setting]) -> Setting | None:
    """The setting of another method to compare with; one with the same teachers is preferred."""
    others = [s for s in among if s.method == method and s.control is None and s != setting]
    return next((s for s in others if s.teachers == setting.teachers), others[0] if others else None)


def _block(
    settings: Sequence[Setting], answers: Mapping[Setting, Mapping[int, Answers]], samples: Samples
) -> list[PairedDifference]:
    """All comparisons on one student at one fraction of labels; comparisons on the same seeds share their draws."""
    wanted: dict[tuple[int, ...], list[tuple[Setting, Setting]]] = {}
    for setting in settings:
        for method in (ALONE,) if setting.control else (ALONE, KD):
            other = reference(setting, method, settings)
            # KD is not compared with KD from other teachers, and the student alone has no reference.
            if other is None or setting.method == ALONE or (setting.method == KD and method == KD):
                continue
            seeds = tuple(sorted(set(answers[setting]) & set(answers[other])))
            if seeds:
                wanted.setdefault(seeds, []).append((setting, other))
    return [pair for seeds, couples in wanted.items() for pair in _compared(couples, seeds, answers, samples)]


def _compared(
    couples: Sequence[tuple[Setting, Setting]],
    seeds: tuple[int, ...],
    answers: Mapping[Setting, Mapping[int, Answers]],
    samples: Samples,
) -> list[PairedDifference]:
    places = {setting: i for i, setting in enumerate(dict.fromkeys(s for couple in couples for s in couple))}
    first = next(iter(places))
    counted = tally(
        [[(answers[s][seed].ids, answers[s][seed].right) for s in places] for seed in seeds],
        [samples(first.student, seed, answers[first][seed].ids) for seed in seeds],
    )
    means, drawn = counted.means(), bootstrap(counted)
    pairs = []
    for setting, other in couples:
        a, b = places[setting], places[other]
        by_seed = means[:, a] - means[:, b]
        gain = difference(float(by_seed.mean()), drawn[:, a] - drawn[:, b])
        wins, ties = int((by_seed > 0).sum()), int((by_seed == 0).sum())
        pairs.append(PairedDifference(setting, other, seeds, counted.rows.shape[1], gain, gain.p, wins, ties))
    return pairs


def sample_numbers(dataset: Dataset, modalities: Sequence[str], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each row, equal exactly for rows with the same student input.

    Raises:
        RunError: an id is not a row of the data.
    """
    numbers = np.empty(len(ids), dtype=np.int64)
    for place, row in enumerate(ids.tolist()):
        if not 0 <= row < len(dataset):
            raise RunError(f"predictions name row {row} of data {dataset.name!r}, which has {len(dataset)} rows")
        digest = hashlib.blake2b(digest_size=8)
        for modality in modalities:
            digest.update(read_one(dataset.inputs[modality], row, f"dataset {dataset.name!r}: {modality!r}"))
        numbers[place] = int.from_bytes(digest.digest(), "big", signed=True)
    return numbers
