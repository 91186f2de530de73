"""Teachers' accuracy, or the metric of another task, on the validation split, with a warning at chance level."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crossdistill.backends.names import backend_of
from crossdistill.backends.zero_shot import zero_shot_causes
from crossdistill.data.targets import TargetScale, has_target
from crossdistill.errors import SettingError
from crossdistill.method import STUDENT
from crossdistill.methods.richkd import RichKDConfig
from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.planning.plan import Job, Plan
from crossdistill.planning.sources import masked_base
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Display, counted
from crossdistill.teacher import TeacherBase
from crossdistill.training.evaluation import predict
from crossdistill.training.fusion import fusion_report, part_logits
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions
from crossdistill.training.selection import of_all_ranks
from crossdistill.training.teacher_agreement import Unlabelled, agreement_text, faults_of, without_labels

log = logging.getLogger("crossdistill")

ABOVE_CHANCE = 1.645
"""Standard deviations above chance for significance: a random guesser exceeds them with a probability of 5 %."""


@dataclass(frozen=True, slots=True)
class TeacherAccuracy:
    """A teacher's accuracy on the validation split, over the `rows` rows that have a target and an output of it.

    `chance` is the accuracy of predicting the most frequent class of these rows. For other tasks than classes,
    `accuracy` is the value of `metric`: R2 of a regression with chance 0, and the mean average precision of
    multi-label, whose chance is the mean frequency of the labels.
    """

    accuracy: float
    rows: int
    chance: float
    metric: str = "accuracy"

    def text(self) -> str:
        """One line for the display."""
        return f"{self.metric} {self.accuracy:.3f} on {counted(self.rows, 'row')}, chance {self.chance:.3f}"

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy is not significantly above chance."""
        if self.metric != "accuracy":
            return not self.accuracy > self.chance
        return not above_chance(round(self.accuracy * self.rows), self.rows, self.chance)


def above_chance(right: int, rows: int, chance: float) -> bool:
    """One-sided binomial test at 5 %, by the normal approximation with continuity correction.

    True if the accuracy of chance is 0 or 1, where no test is possible.
    """
    deviation = math.sqrt(rows * chance * (1 - chance))
    return deviation == 0 or (right - 0.5 - rows * chance) / deviation > ABOVE_CHANCE


class TeacherCheck:
    """Measures each teacher of a run once before its first use, and again after a stage that trains it."""

    def __init__(self, plan: Plan, devices: Devices, display: Display, strict: bool = False) -> None:
        """With `strict`, a teacher that is no better than chance ends the run instead of causing a warning."""
        self._plan, self._devices, self._display, self._strict = plan, devices, display, strict
        self._known: dict[str, dict[str, Any]] = {}
        self._trained: set[str] = set()
        self._unlabelled: set[str] = set()

    def at_start(self) -> None:
        """Measure, before any stage, the teachers of later stages that no stage trains."""
        trained = {name for job in self._plan.jobs for name in job.trained}
        for job in self._plan.jobs[1:]:
            frozen = {
                name: teacher
                for name, teacher in job.teachers.items()
                if name not in self._known and name in self._plan.members and self._network(name) not in trained
            }
            if frozen:
                self.measure(replace(job, teachers=frozen))

    def measure(self, job: Job) -> dict[str, dict[str, Any]]:
        """The accuracy of every teacher of this stage that does not train in it, as plain data; shows and warns.

        Reads banked logits if there are any. Does not change random states. Leaves out teachers without logits, with
        another number of classes than the data, or without a validation row that has their inputs. Where no validation
        row has a target, it shows entropy and agreement instead.

        Raises:
            SettingError: a teacher is no better than chance, and the check is strict.
        """
        measured: dict[str, TeacherAccuracy] = {}
        if not bool(has_target(job.dataset.targets[job.dataset.splits["validation"]]).any()):
            self._without_labels(job)
            return {}
        for name, teacher in job.teachers.items():
            base = TeacherBase.of(teacher).unshuffled
            if name in job.trained or not self._fits(base):
                continue
            if name not in self._known:
                predictions = self._predicted(base, job)
                if predictions is None:
                    continue
                accuracy = _measured(predictions)
                plain = asdict(accuracy)
                # Outcomes of classes are written as before there were other metrics.
                self._known[name] = {k: v for k, v in plain.items() if k != "metric" or v != "accuracy"}
                if accuracy.at_chance:
                    self._warn(job, name, accuracy, predictions)
                elif predictions.task == "classes" and _is_out_of_order(predictions):
                    self._warn_of_order(job, name, accuracy)
            measured[name] = TeacherAccuracy(**self._known[name])
        if measured:
            text = "; ".join(f"{name} {accuracy.text()}" for name, accuracy in measured.items())
            self._display.say(f"{job.stage.name}: teachers on the validation split: {text}")
        self._fused(job)
        return {name: self._known[name] for name in measured}

    def update(self, job: Job, about: Mapping[str, Any]) -> None:
        """Restore the accuracies stored with a finished stage, and drop those of teachers that it trained."""
        self._known |= about.get("teachers", {})
        self._trained |= set(job.trained)
        for name in self._plan.teachers:
            if self._network(name) in job.trained:
                self._known.pop(name, None)

    def _without_labels(self, job: Job) -> None:
        """Show the entropy and the agreement of the teachers of a stage, once for each of them."""
        found: dict[str, Unlabelled] = {}
        for name, teacher in job.teachers.items():
            base = TeacherBase.of(teacher).unshuffled
            if name in job.trained or name in self._unlabelled or not self._fits(base):
                continue
            for module in TeacherBase.of(self._plan.teachers.get(name, teacher)).modules():
                module.eval()
            with torch.random.fork_rng([self._devices.device] if self._devices.device.type == "cuda" else []):
                found[name] = without_labels(base, job.dataset, job.dataset.splits["validation"], self._devices.device)
        self._unlabelled |= set(found)
        if found:
            text = agreement_text(found)
            self._display.say(f"{job.stage.name}: teachers on the validation split, which has no labels: {text}")
        for name, fault in faults_of(
            found, self._plan.dataset.classes, {name: self._zero_shot(name) for name in found}
        ):
            self._complain(f"stage {job.stage.name!r}: teacher {name!r}: {fault}")

    def _fused(self, job: Job) -> None:
        """Show what the fusion of the teachers of a stage makes of them, once, and warn if parts have no effect."""
        if set(job.method.needs()) - {STUDENT} != set(job.teachers):
            return  # only a part of them is measured, before any stage
        with torch.random.fork_rng([self._devices.device] if self._devices.device.type == "cuda" else []):
            parts = part_logits(job, self._devices.device)
        if parts is None:
            return
        assert isinstance(job.stage.method, RichKDConfig)
        report = fusion_report(parts, job.stage.method)
        self._display.say(f"{job.stage.name}: {report.text()}")
        if not report.moves and self._devices.is_main:
            log.warning("stage %r: %s", job.stage.name, report.warning())

    def _complain(self, text: str) -> None:
        """Warn of a teacher that is no better than chance, or refuse it.

        Raises:
            SettingError: the check is strict.
        """
        if self._strict:
            raise SettingError(f"{text}; nothing that it teaches would be worth learning (--strict)")
        if self._devices.is_main:
            log.warning("%s", text)

    def _zero_shot(self, name: str) -> str | None:
        """Likely causes of a zero-shot teacher at chance; None for other teachers."""
        member = self._plan.members.get(self._network(name))
        return None if member is None else zero_shot_causes(member.module)

    def _network(self, name: str) -> str:
        """The name of the network that a teacher runs; for a masked teacher, that of its base."""
        known = self._plan.teachers.get(name)
        base = None if known is None else masked_base(known)
        return name if base is None else base.name

    def _fits(self, teacher: TeacherBase) -> bool:
        alike = teacher.spec.logits is not None and teacher.spec.logits[0] == len(self._plan.dataset.classes)
        return alike and self._plan.trains_logits(teacher.name)

    def _predicted(self, teacher: TeacherBase, job: Job) -> Predictions | None:
        """Predictions for the validation rows: each rank computes its share, and all ranks get the whole."""
        devices, rows = self._devices, job.dataset.splits["validation"]
        for module in TeacherBase.of(self._plan.teachers.get(teacher.name, teacher)).modules():
            module.eval()
        source = teacher.select({Signal.LOGITS})
        with torch.random.fork_rng([devices.device] if devices.device.type == "cuda" else []):
            needed = source.inputs_needed
            share = predict(source, job.dataset, rows[devices.rank :: devices.ranks], devices.device, only=needed)
        whole = of_all_ranks(share, devices)
        return whole if len(whole) else None

    def _warn(self, job: Job, name: str, accuracy: TeacherAccuracy, predictions: Predictions) -> None:
        self._complain(
            f"stage {job.stage.name!r}: teacher {name!r} is no better than chance on the validation split "
            f"({accuracy.text()}): {self._cause(name, predictions)}"
        )

    def _warn_of_order(self, job: Job, name: str, accuracy: TeacherAccuracy) -> None:
        if self._devices.is_main:
            log.warning(
                "stage %r: teacher %r (%s) predicts many more rows correctly with its classes permuted, so some of its "
                "logits seem to be in another order than the data's classes (%s, ...): %s",
                job.stage.name, name, accuracy.text(), ", ".join(self._plan.dataset.classes[:4]),
                "put them into this order (Network(output_adapter=...))" if self._zero_shot(name) is None
                else "give the words of each class by name (class_names)",
            )  # fmt: skip

    def _cause(self, name: str, predictions: Predictions) -> str:
        scale = self._plan.dataset.scale
        if scale is not None and _measured(replace(predictions, predicted=_undone(scale, predictions))).accuracy > 0:
            return (
                "its outputs are in the unit of the targets, and networks give standardised numbers here: wrap it in "
                "Network(output_adapter=...), which subtracts the mean "
                f"({', '.join(f'{value:.4g}' for value in scale.mean)}) and divides by the deviation "
                f"({', '.join(f'{value:.4g}' for value in scale.deviation)}), or make the data with standardise=False"
            )
        renamed = _renamed(predictions) if predictions.task == "classes" else None
        named = self._zero_shot(name)
        if named is not None:
            other = "" if renamed is None else f"with its classes in another order its accuracy is {renamed:.3f}; "
            return other + named
        if renamed is not None:
            return (
                f"with its classes in another order its accuracy is {renamed:.3f}, so the order of its logits is not "
                "that of the data's classes "
                f"({', '.join(self._plan.dataset.classes[:4])}, ...): put them into this order "
                "(Network(output_adapter=...))"
            )
        recipe = self._plan.recipe
        base = self._network(name)
        member = recipe.student if base == recipe.learner else recipe.teachers.get(base)
        if base in self._trained or member is None:
            return "the stage that trained it did not get above chance; train it longer, or with another learning rate"
        fresh = f"no earlier stage trains {base!r}"
        cure = f"train it first (Stage(method='supervised', learner={base!r}, ...)) or let it train here (trains=...)"
        if isinstance(member, Network):
            return (
                f"{fresh}, and it is a network of your own: if its weights are trained, its input is prepared in "
                f"another way here than in its training (scaling, normalisation, channels); else {cure}"
            )
        if backend_of(member.model) == "bank":
            return f"its outputs are those of {member.model}, whose network was no better where they were exported"
        if member.weights is None and backend_of(member.model) is not None:
            return (
                f"{fresh}, and its weights are those of {member.model}: they may be untrained, its input may be "
                "prepared otherwise than for their training (options.rendering), or they know other classes; to train "
                f"it here: teachers.{base}.tune=head"
            )
        if member.weights is None:
            return f"{fresh}, and the recipe names no weights; {cure}, or set its weights (teachers.{base}.weights)"
        return (
            f"{fresh}; its weights are from {member.weights}: its input may be prepared in another way here than in "
            "their training (scaling, normalisation, channels), or they are of other classes"
        )


def _undone(scale: TargetScale, predictions: Predictions) -> Tensor:
    """The outputs of a network as they were, from numbers in the unit of the targets."""
    return scale.standardised(predictions.predicted)


def _measured(predictions: Predictions) -> TeacherAccuracy:
    rows = len(predictions)
    if predictions.task == "regression":
        return TeacherAccuracy(measure("r2", predictions), rows, 0.0, "r2")
    if predictions.task == "multi-label":
        frequency = predictions.targets.nanmean(0)
        return TeacherAccuracy(measure("map", predictions), rows, float(frequency[frequency > 0].mean()), "map")
    predictions = replace(predictions, targets=predictions.classes(), task="classes")
    return TeacherAccuracy(predictions.accuracy(), rows, float(predictions.targets.bincount().max()) / rows)


def _best_names(predicted: Tensor, targets: Tensor) -> Tensor:
    """The most frequent target for each predicted class, over every second row."""
    classes = int(torch.cat([predicted, targets]).max()) + 1
    seen = predicted[::2] * classes + targets[::2]
    return seen.bincount(minlength=classes * classes).view(classes, classes).argmax(1)


def _is_out_of_order(predictions: Predictions) -> bool:
    """Whether a permutation of the classes makes significantly more rows right than it makes wrong.

    The permutation is fitted on every second row and judged on the rest by a sign test (three standard deviations). A
    teacher that confuses several classes with one is weak, but not out of order.
    """
    predicted, targets = predictions.predicted.flatten(), predictions.targets.flatten()
    names, used = _best_names(predicted, targets), predicted[::2].unique()
    if len(names[used].unique()) < len(used):
        return False
    before, after = predicted[1::2] == targets[1::2], names[predicted[1::2]] == targets[1::2]
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    return better - worse > 3 * math.sqrt(better + worse)


def _renamed(predictions: Predictions) -> float | None:
    """Accuracy once each predicted class is renamed to its most frequent target; None unless that is above chance.

    The names are fitted on every second row and judged on the rest.
    """
    predicted, targets = predictions.predicted.flatten(), predictions.targets.flatten()
    renamed, expected = _best_names(predicted, targets)[predicted[1::2]], targets[1::2]
    rows = len(expected)
    if not rows:
        return None
    right = int((renamed == expected).sum())
    return right / rows if above_chance(right, rows, float(expected.bincount().max()) / rows) else None
