"""Teachers' accuracy on the validation split, before they teach, and a warning where it is chance."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.planning.attach_banks import modules_of, reads_of
from crossdistill.planning.plan import Job, Plan
from crossdistill.planning.sources import unshuffled
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Display, counted
from crossdistill.teacher import Masked, Teacher
from crossdistill.training.evaluation import Predictions, predict

log = logging.getLogger("crossdistill")

ABOVE_CHANCE = 1.645
"""Standard deviations above chance from which a number of right answers is no chance: 5 % of guessers reach them."""


@dataclass(frozen=True, slots=True)
class TeacherAccuracy:
    """A teacher's accuracy on the validation split, over `rows` rows: those with a target that it gives an output for.

    `chance` is the accuracy of always naming the most frequent class of these rows. All dimensionless.
    """

    accuracy: float
    rows: int
    chance: float

    def text(self) -> str:
        """For people."""
        return f"accuracy {self.accuracy:.3f} on {counted(self.rows, 'row')}, chance {self.chance:.3f}"

    @property
    def at_chance(self) -> bool:
        """Whether that many right answers are no sign of knowledge."""
        return not above_chance(round(self.accuracy * self.rows), self.rows, self.chance)


def above_chance(right: int, rows: int, chance: float) -> bool:
    """Whether so many right answers are more than chance gives: one-sided, 5 %, the binomial as a normal (corrected).

    True where chance is always right, since nothing can be above it.
    """
    deviation = math.sqrt(rows * chance * (1 - chance))
    return deviation == 0 or (right - 0.5 - rows * chance) / deviation > ABOVE_CHANCE


class TeacherCheck:
    """The teachers of a run, each measured once before it teaches; one that trains is measured again afterwards."""

    def __init__(self, plan: Plan, devices: Devices, display: Display) -> None:
        self._plan, self._where, self._display = plan, devices, display
        self._known: dict[str, dict[str, Any]] = {}
        self._trained: set[str] = set()

    def before(self, job: Job) -> dict[str, dict[str, Any]]:
        """The accuracy of every teacher of this stage that does not train in it, as plain data; said and warned of.

        Banked logits are read where there are any. No random state moves. Left out are teachers without logits, those
        whose logits are over other classes than the data's, and those that see no validation row that has a target.
        """
        found: dict[str, TeacherAccuracy] = {}
        for name, teacher in job.teachers.items():
            base = unshuffled(teacher)
            if name in job.trained or not self._fits(base):
                continue
            if name not in self._known:
                predictions = self._predicted(base, job)
                if predictions is None:
                    continue
                one = _measured(predictions)
                self._known[name] = asdict(one)
                if one.at_chance:
                    self._warn(job, name, one, predictions)
                elif _is_out_of_order(predictions):
                    self._warn_of_order(job, name, one)
            found[name] = TeacherAccuracy(**self._known[name])
        if found:
            said = "; ".join(f"{name} {one.text()}" for name, one in found.items())
            self._display.say(f"{job.stage.name}: teachers on the validation split: {said}")
        return {name: asdict(one) for name, one in found.items()}

    def after(self, job: Job, about: Mapping[str, Any]) -> None:
        """Take up what was measured before a finished stage, and forget what it trained."""
        self._known |= about.get("teachers", {})
        self._trained |= set(job.trained)
        for name in self._plan.teachers:
            if self._network(name) in job.trained:
                self._known.pop(name, None)

    def _network(self, name: str) -> str:
        """The member whose network a teacher runs: its own, or that under its mask."""
        known = self._plan.teachers.get(name)
        return known.base.name if isinstance(known, Masked) else name

    def _fits(self, teacher: Teacher) -> bool:
        return teacher.spec.logits is not None and teacher.spec.logits[0] == len(self._plan.dataset.classes)

    def _predicted(self, teacher: Teacher, job: Job) -> Predictions | None:
        """Every rank predicts its share of the rows; all of them get all predictions."""
        where, rows = self._where, job.dataset.splits["validation"]
        for module in modules_of(self._plan.teachers.get(teacher.name, teacher)):
            module.eval()
        source = teacher.select({Signal.LOGITS})
        with torch.random.fork_rng([where.device] if where.device.type == "cuda" else []):
            own = predict(source, job.dataset, rows[where.rank :: where.ranks], where.device, only=reads_of(source))
        parts = where.everyone((own.ids, own.predicted, own.targets))
        ids, predicted, targets = (torch.cat(values) for values in zip(*parts, strict=True))
        return Predictions(ids, predicted, targets) if len(targets) else None

    def _warn(self, job: Job, name: str, one: TeacherAccuracy, found: Predictions) -> None:
        if self._where.is_main:
            log.warning(
                "stage %r: teacher %r is no better than chance on the validation split (%s): %s",
                job.stage.name, name, one.text(), self._cause(name, found),
            )  # fmt: skip

    def _warn_of_order(self, job: Job, name: str, one: TeacherAccuracy) -> None:
        if self._where.is_main:
            log.warning(
                "stage %r: teacher %r (%s) is right about many more rows once its classes are renamed, each to another "
                "one, so some of its logits seem to stand in another order than the data's classes (%s, ...): put them "
                "into this order (Network(output_adapter=...))",
                job.stage.name, name, one.text(), ", ".join(self._plan.dataset.classes[:4]),
            )  # fmt: skip

    def _cause(self, name: str, found: Predictions) -> str:
        renamed = _renamed(found)
        if renamed is not None:
            return (
                f"with its classes in another order it is right about {renamed:.3f} of them, so the order of its "
                "logits is not that of the data's classes "
                f"({', '.join(self._plan.dataset.classes[:4])}, ...): put them into this order "
                "(Network(output_adapter=...))"
            )
        recipe = self._plan.recipe
        base = self._network(name)
        given = recipe.student if base == recipe.learner else recipe.teachers.get(base)
        if base in self._trained or given is None:
            return "the stage that trained it taught it nothing; train it longer, or with another learning rate"
        fresh = f"no earlier stage trains {base!r}"
        cure = f"train it first (Stage(method='supervised', learner={base!r}, ...)) or let it train here (trains=...)"
        if isinstance(given, Network):
            return (
                f"{fresh}, and it came as a network of your own: if its weights are trained, its input is prepared "
                f"otherwise here than it was for its training (scaling, normalisation, channels); else {cure}"
            )
        if given.weights is None:
            return f"{fresh}, and it was given no weights; {cure}, or give it weights (teachers.{base}.weights)"
        return (
            f"{fresh}; its weights are from {given.weights}: its input may be prepared otherwise here than it was for "
            "their training (scaling, normalisation, channels), or they are of other classes"
        )


def _measured(found: Predictions) -> TeacherAccuracy:
    rows = len(found.targets)
    return TeacherAccuracy(found.accuracy(), rows, float(found.targets.bincount().max()) / rows)


def _best_names(predicted: Tensor, targets: Tensor) -> Tensor:
    """For each predicted class the target that is most frequent under it, on every other row."""
    classes = int(torch.cat([predicted, targets]).max()) + 1
    seen = predicted[::2] * classes + targets[::2]
    return seen.bincount(minlength=classes * classes).view(classes, classes).argmax(1)


def _is_out_of_order(found: Predictions) -> bool:
    """Whether renaming classes, one to one, makes clearly more rows right than it makes wrong.

    The names are chosen on every other row, and judged on the rest by a sign test (three standard deviations). A
    teacher that takes several classes for one is weak, but not out of order.
    """
    predicted, targets = found.predicted.flatten(), found.targets.flatten()
    names, used = _best_names(predicted, targets), predicted[::2].unique()
    if len(names[used].unique()) < len(used):
        return False
    before, after = predicted[1::2] == targets[1::2], names[predicted[1::2]] == targets[1::2]
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    return better - worse > 3 * math.sqrt(better + worse)


def _renamed(found: Predictions) -> float | None:
    """Accuracy once each predicted class is renamed, where that is above chance.

    The names are chosen on every other row, and judged on the rest.
    """
    predicted, targets = found.predicted.flatten(), found.targets.flatten()
    own, wanted = _best_names(predicted, targets)[predicted[1::2]], targets[1::2]
    rows = len(wanted)
    if not rows:
        return None
    right = int((own == wanted).sum())
    return right / rows if above_chance(right, rows, float(wanted.bincount().max()) / rows) else None
