"""Accuracy and calibration of a finished run's networks on corrupted pictures: every kind, in several severities.

The mean corruption error relative to a baseline is that of Hendrycks and Dietterich, ICLR 2019: for each kind the sum
of the errors over severities divided by the baseline's, and the mean of that over kinds. Without a baseline it is the
plain mean of the errors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted_data
from crossdistill.data.dataset import Dataset
from crossdistill.data.targets import has_target
from crossdistill.errors import DataError, SettingError, nearest
from crossdistill.outputs import Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.runtime.escaping import markdown
from crossdistill.runtime.files import file_fault, read_json, write_text
from crossdistill.runtime.hashing import tensor_hash
from crossdistill.runtime.progress import Display, counted
from crossdistill.teacher import TeacherBase
from crossdistill.training.calibration import expected_calibration_error
from crossdistill.training.evaluation import batches, few_rows
from crossdistill.training.finished import STUDENT, TEACHER

Values = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By source and corruption, a value for each severity."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracy and ECE of each source on corrupted pictures of a split, and its accuracy on the same rows unchanged.

    `baseline` is the name of what mean corruption errors are relative to, `baseline_errors` its errors by corruption.
    """

    data: str
    split: str
    rows: int
    seed: int
    severities: tuple[int, ...]
    clean: Mapping[str, float]
    accuracy: Values
    ece: Values
    baseline: str | None = None
    baseline_errors: Mapping[str, tuple[float, ...]] | None = None
    rows_key: str = ""
    """A hash of the rows: splits that are drawn by other seeds are of one name and size."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The corruptions, in their order."""
        return tuple(next(iter(self.accuracy.values()), {}))

    def mean_accuracy(self, source: str) -> float:
        """Mean accuracy over kinds and severities."""
        return _mean([_mean(values) for values in self.accuracy[source].values()])

    def mean_ece(self, source: str) -> float:
        """Mean expected calibration error over kinds and severities."""
        return _mean([_mean(values) for values in self.ece[source].values()])

    def corruption_error(self, source: str) -> float:
        """The mean corruption error: relative to the baseline, or the plain mean.

        Kinds in which the baseline makes no error are left out; NaN if these are all.
        """
        errors = {kind: 1 - _mean(values) for kind, values in self.accuracy[source].items()}
        if self.baseline_errors is None:
            return _mean(list(errors.values()))
        bases = {kind: _mean(self.baseline_errors[kind]) for kind in errors if kind not in self.without_error}
        return _mean([errors[kind] / base for kind, base in bases.items()]) if bases else float("nan")

    @property
    def without_error(self) -> tuple[str, ...]:
        """The corruptions in which the baseline makes no error."""
        return tuple(kind for kind, errors in (self.baseline_errors or {}).items() if not any(errors))

    def as_data(self) -> dict[str, Any]:
        """All values as plain JSON values."""
        plain = {name: getattr(self, name) for name in ("data", "split", "rows", "rows_key", "seed", "severities")}
        return {
            **plain,
            "baseline": self.baseline,
            "sources": {
                name: {
                    "clean": self.clean[name],
                    "mean_accuracy": self.mean_accuracy(name),
                    "mean_ece": self.mean_ece(name),
                    "corruption_error": _number(self.corruption_error(name)),
                    "accuracy": self.accuracy[name],
                    "ece": self.ece[name],
                }
                for name in self.accuracy
            },
        }

    def markdown(self) -> str:
        """A table with a line for each corruption and a column for each source, then their means."""
        names = list(self.accuracy)
        lines = [f"| accuracy | {' | '.join(map(markdown, names))} |", f"|---|{'--:|' * len(names)}"]
        rows = {"unchanged": [self.clean[name] for name in names]}
        rows |= {kind: [_mean(self.accuracy[name][kind]) for name in names] for kind in self.kinds}
        rows["mean of all"] = [self.mean_accuracy(name) for name in names]
        against = "mean error" if self.baseline is None else f"mCE against {self.baseline}"
        rows[against] = [self.corruption_error(name) for name in names]
        rows["mean ECE"] = [self.mean_ece(name) for name in names]
        lines += [
            f"| {markdown(row)} | {' | '.join(f'{value:.4f}' for value in values)} |" for row, values in rows.items()
        ]
        said = (
            f"The {markdown(self.split)} split of {markdown(self.data)}, {counted(self.rows, 'row')}; each corruption "
            f"is the mean over the severities {', '.join(map(str, self.severities))}."
        )
        if self.without_error:
            said += f" The baseline makes no error under {', '.join(self.without_error)}: mCE leaves it out."
        return "\n".join([said, "", *lines]) + "\n"

    def save(self, folder: Path) -> None:
        """Write `SPLIT-corruptions.json` and `SPLIT-corruptions.md` into a folder.

        Raises:
            StorageError: they could not be written.
        """
        name = f"{self.split}-corruptions"
        write_text(folder / f"{name}.json", json.dumps(self.as_data(), indent=2, allow_nan=False) + "\n")
        write_text(folder / f"{name}.md", self.markdown())


def chosen_corruptions(text: str) -> tuple[str, ...]:
    """The corruptions of a setting: `all`, or names separated by commas.

    Raises:
        SettingError: there is none of a name; names the nearest.
    """
    names = tuple(CORRUPTIONS) if text.strip() == "all" else tuple(one.strip() for one in text.split(","))
    for name in names:
        if name not in CORRUPTIONS:
            raise SettingError(
                f"--corruptions: no corruption is called {name!r}; {nearest(name, ['all', *CORRUPTIONS])}"
            )
    return tuple(dict.fromkeys(names))


def chosen_severities(text: str) -> tuple[int, ...]:
    """Severities from text such as `1,3,5`.

    Raises:
        SettingError: one is no number from 1 to 5.
    """
    parts = [one.strip() for one in text.split(",")]
    wrong = [one for one in parts if not one.isdecimal() or not 1 <= int(one) <= SEVERITIES]
    if wrong:
        raise SettingError(f"--severities: wanted numbers from 1 to {SEVERITIES}, as in 1,3,5, found {wrong[0]!r}")
    return tuple(sorted({int(one) for one in parts}))


def robustness(
    sources: Mapping[str, TeacherBase],
    dataset: Dataset,
    split: str,
    rows: Tensor,
    device: torch.device,
    kinds: Sequence[str],
    severities: Sequence[int],
    display: Display,
    *,
    seed: int = 0,
    baseline: str | None = None,
) -> Robustness:
    """Measure sources on corrupted pictures of some rows; stored outputs, which see no picture, are left out.

    `baseline` is a source's name, or the folder of another run that was analysed with the same corruptions.

    Raises:
        DataError: the data have no pictures, or the baseline's results are missing, damaged, or of other conditions.
        SettingError: no such baseline.
    """
    known = {name: source for name, source in sources.items() if _sees(source)}
    same = tensor_hash(rows.sort().values)
    found = Robustness(dataset.name, split, len(rows), seed, tuple(severities), {}, {}, {}, rows_key=same)
    own = next((name for name in (baseline, f"{TEACHER}{baseline}") if name in known), None)
    # Before anything is measured.
    others = None if baseline is None or own is not None else _of_run(found, kinds, Path(baseline), known)
    unchanged = _measured(known, dataset, rows, device)
    each: dict[str, list[dict[str, tuple[float, float]]]] = {}
    display.begin("corruptions", len(kinds) * len(severities))
    for kind in kinds:
        each[kind] = []
        for severity in severities:
            each[kind].append(_measured(known, corrupted_data(dataset, kind, severity, seed), rows, device))
            display.advance()
    display.end()

    def values(name: str, place: int) -> dict[str, tuple[float, ...]]:
        return {kind: tuple(one[name][place] for one in each[kind]) for kind in kinds}

    found = replace(
        found,
        clean={name: unchanged[name][0] for name in known},
        accuracy={name: values(name, 0) for name in known},
        ece={name: values(name, 1) for name in known},
    )
    bases = found.accuracy[own] if own is not None else others
    if bases is None:
        return found
    errors = {kind: tuple(1 - value for value in accuracy) for kind, accuracy in bases.items()}
    return replace(found, baseline=own or baseline, baseline_errors=errors)


def _sees(source: TeacherBase) -> bool:
    """Whether it reads its inputs; a fused teacher with a stored part would mix corrupted and unchanged pictures."""
    parts: Mapping[str, TeacherBase] = getattr(source, "parts", {source.name: source})
    return all(part.modalities for part in parts.values())


@torch.no_grad()
def _measured(
    sources: Mapping[str, TeacherBase], dataset: Dataset, rows: Tensor, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Accuracy and ECE of each source over the rows that it sees; each batch is read once for all of them."""
    reads = sorted({name for source in sources.values() for name in source.inputs_needed})

    def all_outputs(batch: Batch) -> list[Any]:
        return [source(batch) for source in sources.values()]

    size = rows_at_once(all_outputs, few_rows(dataset, rows, device, only=reads), len(rows), device)
    likely: dict[str, list[Tensor]] = {name: [] for name in sources}
    targets: dict[str, list[Tensor]] = {name: [] for name in sources}
    for batch in batches(dataset, rows, device, size, only=reads):
        assert batch.targets is not None
        for (name, _), outputs in zip(sources.items(), all_outputs(batch), strict=True):
            own = outputs.of(batch.targets)
            keep = has_target(own)
            likely[name].append(outputs.need(Signal.LOGITS)[keep].softmax(1).cpu())
            targets[name].append(own[keep].cpu())
    found = {}
    for name in sources:
        probabilities, wanted = torch.cat(likely[name]), torch.cat(targets[name])
        right = (probabilities.argmax(1) == wanted).double()
        found[name] = (
            float(right.mean()) if len(right) else 0.0,
            expected_calibration_error(probabilities, wanted) if len(right) else 0.0,
        )
    return found


def _of_run(
    wanted: Robustness, kinds: Sequence[str], run: Path, known: Mapping[str, TeacherBase]
) -> dict[str, tuple[float, ...]]:
    """The accuracies of the student of another run, by corruption.

    Raises:
        SettingError: there is no such folder, nor a source of that name.
        DataError: its results are missing, damaged, or of other conditions.
    """
    if not run.is_dir():
        names = [name.removeprefix(TEACHER) for name in known]
        raise SettingError(
            f"--baseline: {str(run)!r} is neither a source of this run nor a folder; {nearest(str(run), names)}"
        )
    file = run / "analysis" / f"{wanted.split}-corruptions.json"
    if file_fault(file) is not None:
        raise DataError(f"--baseline: {file}: {file_fault(file)}; analyse that run with the same corruptions first")
    try:
        stored = read_json(file)
        conditions = {name: stored[name] for name in ("data", "rows", "rows_key", "seed", "severities")}
        own = {name: getattr(wanted, name) for name in conditions} | {"severities": list(wanted.severities)}
        if conditions != own:
            raise ValueError(f"wanted {own}, found {conditions}; analyse that run under the same conditions")
        accuracy = {kind: tuple(map(float, stored["sources"][STUDENT]["accuracy"][kind])) for kind in kinds}
        each = [value for values in accuracy.values() for value in values]
        if len(each) != len(kinds) * len(wanted.severities) or not all(0 <= value <= 1 for value in each):
            raise ValueError("wanted an accuracy from 0 to 1 for each severity")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"--baseline: {file} cannot be used: {type(error).__name__}: {str(error)[:300]}") from error
    return accuracy


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float) -> float | None:
    return value if value == value else None
