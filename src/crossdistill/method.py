"""One algorithm's step: what it needs, what it adds, and the terms that it gives."""

import abc
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.losses.cross_entropy import cross_entropy
from crossdistill.network import Network
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher

STUDENT = "student"
"""The name under which a method speaks of the network that learns, whatever the recipe calls it."""


def module_key(name: str) -> str:
    """A name as a submodule may have it: no dots, and not the name of a module's own attribute (`type`, `float`)."""
    key = name.replace(".", "/")
    # No member's name begins so.
    return f"/{key}" if hasattr(_NAMED, key) else key


_NAMED = nn.ModuleDict()


def _alone(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage is (epochs and steps count from 0), and how rows of other ranks are fetched.

    `gather` gives the rows of all ranks, this rank's own with gradient; alone it gives them back.
    """

    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    gather: Callable[[Tensor], Tensor] = _alone


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of a loss.

    `value` holds one number for each row (R,), reduced as their sum over the step's total rows, or is a scalar
    that a batch-level loss gives (then reduced already). `share` is the fraction of rows that take part by
    construction (the labelled fraction), so that a term's size does not depend on how many are hidden. Terms of
    one `group` are one task for the weighting.
    """

    value: Tensor
    weight: float | Tensor = 1.0
    group: str = "distil"
    share: float = 1.0

    def reduced(self, total_rows: int, parts: int = 1) -> Tensor:
        """This part of the term, unweighted: those of all ranks and micro-batches, so many, add up to the whole."""
        # Where no row takes part at all, the sum is zero.
        return self.value / parts if self.value.ndim == 0 else self.value.sum() / (total_rows * (self.share or 1.0))


@dataclass(frozen=True, slots=True)
class Step:
    """The terms of one step, the student's outputs, numbers to log, and what `after_step` will need (detached)."""

    terms: Mapping[str, Term]
    student: Outputs
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    stash: Mapping[str, Tensor] = field(default_factory=dict)

    def loss(self, total_rows: int) -> Float[Tensor, ""]:
        """The weighted sum of all terms, for a training loop of your own on one device; the runner weighs groups."""
        return torch.stack([(term.reduced(total_rows) * term.weight).reshape(()) for term in self.terms.values()]).sum()


@dataclass(frozen=True, slots=True)
class DataSpec:
    """What a method may know of the training data: rows, classes, the labelled fraction, ids and targets by row.

    `targets` hold `MISSING_TARGET` in rows whose target the student may not use.
    """

    rows: int
    classes: int
    targets: Tensor | None = None
    ids: Int64[Tensor, " N"] | None = None
    labelled_fraction: float = 1.0


class Method(nn.Module, abc.ABC):
    """One distillation algorithm. It owns only what it adds: projectors, gates, masks, queues.

    The student and the teachers are arguments, never attributes: a method's state holds none of them.
    """

    batch_relational: ClassVar[bool] = False
    """Compares rows with each other: ranks gather rows, and micro-batches are refused."""
    least_rows: ClassVar[int] = 1
    """Rows in a batch below which it compares nothing."""
    judged_by_targets: ClassVar[bool] = True
    """`validate` compares with targets, so a validation split without any judges nothing."""
    labelled_only: ClassVar[bool] = False
    """Iterates over rows whose target the student may use, in as many steps as over all of them."""
    symmetric: ClassVar[bool] = False
    """The learner and the trained teachers could change places: the stage can be shared by runs that differ in that."""

    @abc.abstractmethod
    def needs(self) -> Mapping[str, frozenset[Signal]]:
        """What is read of whom, by name; `STUDENT` is the network that learns."""

    @abc.abstractmethod
    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """The terms of one step. Moves no state: that is `after_step`'s."""

    def parts(self) -> Mapping[str, nn.Module]:
        """Modules of this method that are selected separately, by the name that `validate` gives them."""
        return {}

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        """For each part that is selected by itself, one number for each row that judges it, lower is better.

        The default judges the student by its cross-entropy (nats) on the rows that have a target, whoever may use it.
        """
        outputs = student(batch)
        assert batch.targets is not None
        rows = cross_entropy(outputs.need(Signal.LOGITS), outputs.of(batch.targets))
        return {STUDENT: rows[outputs.of(batch.has_target())]}

    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        """A pass over the training data before the first step, without training (salience, statistics)."""

    def after_step(self, batch: Batch, step: Step) -> None:
        """Move state (queues, centres): the only place where that may happen."""

    def epoch_logs(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        """Numbers to log of a whole epoch, from the sums of its steps' logs."""
        return {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "graduates" in vars(cls):
            warnings.warn(
                f"{cls.__name__}.graduates is called next_teachers now; the old name goes with version 0.2",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.next_teachers = vars(cls)["graduates"]  # type: ignore[method-assign]

    def next_teachers(self, teachers: Mapping[str, Teacher]) -> Mapping[str, Teacher]:
        """The teachers of the next stage."""
        return teachers


ActsOn = Literal["logits", "last", "maps", "last map", "student's layers"]
"""Networks' logits; their penultimate layers; their spatial layers, or the deepest of them; or, of the student alone,
spatial and penultimate layers."""


Activation = Literal["before", "after"]
"""Whether features are read before or after the activation of their layer."""


class MethodConfig(BaseModel, abc.ABC):
    """Hyper-parameters of one method, frozen, in the method's own file; `name` is how recipes call it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graduating: ClassVar[bool] = False
    """Makes new teachers for the stages after it, so that these cannot be checked where it is faulty."""
    trains_teachers: ClassVar[bool] = False
    """Its teachers train with the student, unless the stage's `trains` says otherwise."""
    acts_on: ClassVar[ActsOn | None] = None
    """What it compares, if its recipe is one stage with pretrained teachers; None: its recipe is written out."""
    activation: ClassVar[Activation] = "after"
    """Where it reads features, as published, of layers that are tapped both before and after their activation."""

    name: str

    @abc.abstractmethod
    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """The method for networks of these sizes.

        Raises:
            ApplicabilityError: it cannot apply to them; says why.
            SignalError: a network lacks a tap or an output that it needs.
        """

    def settled(
        self, networks: Mapping[str, Network], batch: Batch
    ) -> tuple["MethodConfig", Mapping[str, Sequence[str]]]:
        """These settings with what they leave open chosen from the teachers' networks, and the layers that it names.

        The same networks have to give the same choice: a resumed run chooses again.

        Raises:
            ApplicabilityError: there is nothing to choose from; says whose.
        """
        return self, {}

    def chosen_besides(self, given: "MethodConfig") -> str:
        """What these settings have that the given ones left open, for people; empty where that is nothing."""
        mine, theirs = self.model_dump(mode="json"), given.model_dump(mode="json")
        return "; ".join(f"{name} = {value}" for name, value in mine.items() if value != theirs.get(name))

    def note(self) -> Mapping[str, Any]:
        """Facts for people, shown by `crossdistill list methods`: paper, year."""
        return {}


def task_term(
    outputs: Outputs, batch: Batch, *, hidden: bool = True, fraction: float = 1.0, weight: float = 1.0
) -> Term:
    """Cross-entropy (nats) on labelled rows; `hidden` obeys the student's hidden labels, teachers keep theirs."""
    assert batch.targets is not None
    rows: Float[Tensor, " R"] = cross_entropy(outputs.need(Signal.LOGITS), outputs.of(batch.targets))
    known = outputs.of(batch.student_rows() if hidden else batch.has_target())
    return Term(rows.where(known, 0.0), weight, "task", fraction)
