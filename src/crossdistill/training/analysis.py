"""Analysis of a finished run on one split: calibration of its student, of each teacher and of the fused one.

The split is looked at after training: nothing here selects a state, a setting or an epoch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.data.dataset import Dataset
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.recipe import Recipe
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.escaping import markdown
from crossdistill.runtime.files import write_text
from crossdistill.runtime.progress import Display, Quiet, counted
from crossdistill.teacher import TeacherBase
from crossdistill.training.calibration import CERTAIN, Calibration, Cells, calibration, confidence_cells
from crossdistill.training.corruption_results import Robustness, robustness
from crossdistill.training.evaluation import predict
from crossdistill.training.finished import FUSED, TEACHER, finished_run, rows_of
from crossdistill.training.predictions import Predictions
from crossdistill.training.reliability_figure import reliability_svg

_CELLS = [cell.name for cell in fields(Cells)]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Calibration of the sources of a run by name: `student`, `teacher:NAME`, and `fused` where a method fuses logits.

    `changes` are the relative changes of each source's cells against those of `reference`, on the rows that both
    predict. `without` are the sources that predict no row of the split.
    """

    data: str
    split: str
    rows: int
    certain: float
    reference: str | None
    sources: Mapping[str, Calibration]
    changes: Mapping[str, Mapping[str, float]]
    without: tuple[str, ...] = ()
    robustness: Robustness | None = None
    """The same sources on corrupted pictures, if that was measured."""

    def as_data(self) -> dict[str, Any]:
        """All values as plain JSON values; a NaN is None."""
        changes = {
            name: {cell: value if math.isfinite(value) else None for cell, value in change.items()}
            for name, change in self.changes.items()
        }
        plain = {name: getattr(self, name) for name in ("data", "split", "rows", "certain", "reference")}
        sources = {name: found.as_data() for name, found in self.sources.items()}
        measured = {**plain, "sources": sources, "changes": changes, "without": list(self.without)}
        return measured if self.robustness is None else {**measured, "corruptions": self.robustness.as_data()}

    def markdown(self) -> str:
        """A table with a line for each source, and a sentence that says what it shows."""
        head = ["", "rows", "accuracy", "ECE", "NLL", "Brier", *(name.replace("_", " ") for name in _CELLS)]
        lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
        for name, found in self.sources.items():
            numbers = [f"{value:.4f}" for value in (found.accuracy, found.ece, found.nll, found.brier)]
            change = self.changes.get(name, {})
            cells = [_cell(count, change.get(cell)) for cell, count in asdict(found.cells).items()]
            lines.append(f"| {' | '.join([markdown(name), f'{found.rows:,}', *numbers, *cells])} |")
        against = f"; changes are against {markdown(self.reference)}" if self.reference else ""
        said = (
            f"The {markdown(self.split)} split of {markdown(self.data)}, {counted(self.rows, 'row')}. Confident: the "
            f"largest probability is at least {self.certain:g}{against}."
        )
        if self.without:
            said += f" Without predictions here: {', '.join(map(markdown, self.without))}."
        table = "\n".join([said, "", *lines]) + "\n"
        return table if self.robustness is None else f"{table}\n{self.robustness.markdown()}"

    def save(self, folder: Path) -> None:
        """Write `SPLIT.json`, `SPLIT.md` and the reliability diagram, `SPLIT.svg`, into a folder.

        Corruptions have files of their own, so that another analysis without them leaves them there.

        Raises:
            StorageError: they could not be written.
        """
        alone = replace(self, robustness=None)
        write_text(folder / f"{self.split}.json", json.dumps(alone.as_data(), indent=2, allow_nan=False) + "\n")
        write_text(folder / f"{self.split}.md", alone.markdown())
        if self.robustness is not None:
            self.robustness.save(folder)
        about = f"Reliability on the {self.split} split of {self.data}"
        write_text(folder / f"{self.split}.svg", reliability_svg(self.sources, about))


def analyse(
    run: Path | str,
    recipe: Recipe,
    *,
    split: str = "test",
    reference: str | None = None,
    certain: float = CERTAIN,
    rows: int | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    baseline: str | None = None,
    display: Display | None = None,
) -> Analysis:
    """Measure the student, the teachers and the fused teacher of a finished run on a split of its data.

    `reference` is the teacher that changes of cells are against (by default the main one); `rows` limits the rows.
    `corruptions`, `severities` and `baseline` are those of `robustness`; by default pictures are not corrupted.

    Raises:
        SettingError: no such split, teacher or baseline.
        DataError: the data have no pictures to corrupt.
        ApplicabilityError: the data's targets are not classes.
        RunError, RecipeError: see `finished_run`.
    """
    display = display or Quiet()
    with devices(recipe.device) as placed:
        dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
        check_split(dataset, split)
        found = finished_run(Path(run), recipe, dataset, placed)
        against = _reference(found.sources, reference, found.main)
        places = rows_of(found.dataset, split, rows)
        predictions = predicted(found.sources, found.dataset, places, placed.device, display)
        if FUSED in predictions and not all(len(predictions[part]) for part in found.parts):
            # Without a part, such as stored outputs of other splits, it is another teacher.
            predictions[FUSED] = _only(predictions[FUSED], torch.zeros(0, dtype=torch.int64))
        measured = _measured(dataset.name, split, len(places), certain, against, predictions)
        if not corruptions:
            return measured
        some = {name: source for name, source in found.sources.items() if name in measured.sources}
        where = (found.dataset, split, places, placed.device)
        return replace(
            measured, robustness=robustness(some, *where, corruptions, severities, display, baseline=baseline)
        )


def check_split(dataset: Dataset, split: str) -> None:
    """Check that the data have this split, and classes.

    Raises:
        SettingError, ApplicabilityError: they have not.
    """
    if split not in dataset.splits:
        raise SettingError(f"data {dataset.name!r} has no split {split!r}; {nearest(split, dataset.splits)}")
    if dataset.task != "classes":
        raise ApplicabilityError(
            f"calibration is of probabilities of classes, and data {dataset.name!r} has targets of {dataset.task!r}; "
            "`crossdistill eval` measures them"
        )


def predicted(
    sources: Mapping[str, TeacherBase], dataset: Dataset, rows: Tensor, device: torch.device, display: Display
) -> dict[str, Predictions]:
    """The predictions of each source with their probabilities, for the rows that it sees and that have a label."""
    display.begin("analysis", len(sources))
    found = {}
    for name, source in sources.items():
        found[name] = predict(source, dataset, rows, device, only=source.inputs_needed, probabilities=True)
        display.advance()
    display.end()
    return found


def _reference(sources: Mapping[str, TeacherBase], wanted: str | None, main: str | None) -> str | None:
    name = f"{TEACHER}{wanted}" if wanted is not None and f"{TEACHER}{wanted}" in sources else wanted or main
    if wanted is not None and name not in sources:
        known = [one.removeprefix(TEACHER) for one in sources]
        raise SettingError(f"--teacher: this run has no source {wanted!r}; {nearest(wanted, known)}")
    return name if name in sources else None


def _measured(
    data: str, split: str, rows: int, certain: float, reference: str | None, predictions: Mapping[str, Predictions]
) -> Analysis:
    some = {name: found for name, found in predictions.items() if len(found)}
    base = some.get(reference or "")
    changes = {}
    for name, found in some.items():
        if base is not None and name != reference:
            pair = _shared(found, base)
            own, other = (confidence_cells(_likely(one), one.classes(), certain) for one in pair)
            changes[name] = own.change(other)
    return Analysis(
        data,
        split,
        rows,
        certain,
        None if base is None else reference,
        {name: calibration(_likely(found), found.classes(), certain=certain) for name, found in some.items()},
        changes,
        tuple(name for name in predictions if name not in some),
    )


def _shared(one: Predictions, other: Predictions) -> tuple[Predictions, Predictions]:
    """Both predictions on the rows that both have."""
    return _only(one, other.ids), _only(other, one.ids)


def _only(found: Predictions, ids: Tensor) -> Predictions:
    keep = torch.isin(found.ids, ids)
    return Predictions(found.ids[keep], found.predicted[keep], found.targets[keep], _likely(found)[keep])


def _likely(found: Predictions) -> Tensor:
    assert found.probabilities is not None
    return found.probabilities


def _cell(count: int, change: float | None) -> str:
    return f"{count:,}" if change is None or not math.isfinite(change) else f"{count:,} ({100 * change:+.1f} %)"
