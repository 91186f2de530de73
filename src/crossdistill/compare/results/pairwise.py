"""Which method is better than which, and which cannot be told apart: the paired comparison of a grid."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.compare.grid import Setting
from crossdistill.compare.results.collect import Answers, Collected
from crossdistill.compare.results.statistics import DRAWS, LEVEL, Difference, bootstrap, difference, holm, tally
from crossdistill.data.dataset import Dataset
from crossdistill.errors import RunError

ALONE, KD = "supervised", "kd"
"""What every method is compared with."""

Samples = Callable[[str, int, NDArray[np.int64]], NDArray[np.int64]]
"""Which test sample each row is, for a student and a seed: rows that show the student the same input are one."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A method against another one, on the same student, labels, seeds and test samples."""

    setting: Setting
    against: Setting
    seeds: tuple[int, ...]
    samples: int
    found: Difference
    p_holm: float
    wins: int
    """Seeds on which it is better; the others are ties or losses."""
    ties: int

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p_holm > 1 - LEVEL:
            return "not distinguishable"
        return "better" if self.found.value > 0 else "worse"

    @property
    def losses(self) -> int:
        """Seeds on which it is worse."""
        return len(self.seeds) - self.wins - self.ties

    def as_data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self.setting),
            "against": {"method": self.against.method, "teachers": self.against.teachers},
            "difference": self.found.value,
            "low": self.found.low,
            "high": self.found.high,
            "p": self.found.p,
            "p_holm": self.p_holm,
            "verdict": self.verdict,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "seeds": list(self.seeds),
            "test_samples": self.samples,
        }


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All comparisons of a grid; controls are separate, since they are tested for another hypothesis."""

    pairs: tuple[PairedDifference, ...]
    controls: tuple[PairedDifference, ...]
    """Each control against the student alone."""

    def of(self, setting: Setting, method: str) -> PairedDifference | None:
        """A setting's comparison with a method."""
        found = (pair for pair in (*self.pairs, *self.controls) if pair.setting == setting)
        return next((pair for pair in found if pair.against.method == method), None)

    def as_data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "level": LEVEL,
            "draws": DRAWS,
            "correction": "Holm, over all comparisons on one student at one fraction of labels",
            "pairs": [pair.as_data() for pair in self.pairs],
            "controls": [
                {**pair.as_data(), "exceeds": exceeds(pair), "control_upper": pair.found.high} for pair in self.controls
            ],
        }


def exceeds(control: PairedDifference) -> bool:
    """Whether the upper confidence bound of a control lies above the student alone."""
    return control.found.high > 0


def verdicts(collected: Collected, samples: Samples) -> Verdicts:
    """Compare every method with the student alone and with KD, student by student and label fraction by fraction."""
    pairs: list[PairedDifference] = []
    controls: list[PairedDifference] = []
    blocks = dict.fromkeys((setting.student, setting.labelled) for setting in collected.answers)
    for student, labelled in blocks:
        own = [s for s in collected.answers if (s.student, s.labelled) == (student, labelled)]
        found = _block(own, collected.answers, samples)
        family = [pair for pair in found if pair.setting.control is None]
        corrected = holm([pair.found.p for pair in family])
        pairs += [replace(pair, p_holm=p) for pair, p in zip(family, corrected, strict=True)]
        controls += [pair for pair in found if pair.setting.control is not None]
    return Verdicts(tuple(pairs), tuple(controls))


def reference(setting: Setting, method: str, among: Sequence[Setting]) -> Setting | None:
    """The setting of another method that this one is compared with: the same teachers where there is a choice."""
    found = [s for s in among if s.method == method and s.control is None and s != setting]
    return next((s for s in found if s.teachers == setting.teachers), found[0] if found else None)


def _block(
    own: Sequence[Setting], answers: Mapping[Setting, Mapping[int, Answers]], samples: Samples
) -> list[PairedDifference]:
    """All comparisons on one student at one fraction of labels; those on the same seeds are made on the same draws."""
    wanted: dict[tuple[int, ...], list[tuple[Setting, Setting]]] = {}
    for setting in own:
        for method in (ALONE,) if setting.control else (ALONE, KD):
            other = reference(setting, method, own)
            # KD is not compared with KD of other teachers, and the student alone is compared with nothing.
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
        found = difference(float(by_seed.mean()), drawn[:, a] - drawn[:, b])
        wins, ties = int((by_seed > 0).sum()), int((by_seed == 0).sum())
        pairs.append(PairedDifference(setting, other, seeds, counted.rows.shape[1], found, found.p, wins, ties))
    return pairs


def sample_numbers(dataset: Dataset, reads: Sequence[str], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each row, the same exactly for rows in which the student is shown the same input."""
    numbers = np.empty(len(ids), dtype=np.int64)
    for place, row in enumerate(ids.tolist()):
        if not 0 <= row < len(dataset):
            raise RunError(f"predictions name row {row} of data {dataset.name!r}, which has {len(dataset)} rows")
        digest = hashlib.blake2b(digest_size=8)
        for modality in reads:
            digest.update(dataset.inputs[modality][row].contiguous().numpy().tobytes())
        numbers[place] = int.from_bytes(digest.digest(), "big", signed=True)
    return numbers
