"""The interface of a method: its settings, the signals that it needs, and the loss terms of a step."""

import abc
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, model_serializer
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.losses.task import task_loss
from crossdistill.network import Network
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher

STUDENT = "student"
"""The name of the learner within a method, whatever its name in the recipe."""


def module_key(name: str) -> str:
    """A valid submodule name: without dots, and different from the attributes of a module (`type`, `float`)."""
    key = name.replace(".", "/")
    # No member's name begins with a slash.
    return f"/{key}" if hasattr(_NAMED, key) else key


_NAMED = nn.ModuleDict()


def _alone(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, slots=True)
class Progress:
    """The position in a stage (epochs and steps count from 0), and the exchange of rows between ranks.

    `gather` returns the rows of all ranks, with gradient for those of this rank; with one rank, its argument.
    """

    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    gather: Callable[[Tensor], Tensor] = _alone


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of a loss.

    `value` is one number per row (R,), reduced to their sum divided by the step's total rows, or the scalar of a
    batch-level loss (already reduced). `share` is the expected fraction of rows with a loss (the labelled fraction);
    the division by it makes a term's size independent of the number of hidden labels. Terms of one `group` are one
    task for the weighting.
    """

    value: Tensor
    weight: float | Tensor = 1.0
    group: str = "distil"
    share: float = 1.0

    def reduced(self, total_rows: int, parts: int = 1) -> Tensor:
        """This part of the unweighted term; the sum over all `parts` (ranks times micro-batches) is the whole."""
        # If no row takes part, the sum is zero.
        return self.value / parts if self.value.ndim == 0 else self.value.sum() / (total_rows * (self.share or 1.0))


@dataclass(frozen=True, slots=True)
class Step:
    """The terms of one step, the student's outputs, numbers to log, and detached values for `after_step`."""

    terms: Mapping[str, Term]
    student: Outputs
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    stash: Mapping[str, Tensor] = field(default_factory=dict)

    def loss(self, total_rows: int) -> Float[Tensor, ""]:
        """The weighted sum of all terms, for custom training loops on one device; the runner weights groups."""
        return torch.stack([(term.reduced(total_rows) * term.weight).reshape(()) for term in self.terms.values()]).sum()


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Facts about the training data for a method: rows, classes, labelled fraction, and the ids and targets of rows.

    `task` is the kind of the targets, as in `Batch`. In rows whose target is hidden from the student, `targets` are
    `MISSING_TARGET`, or NaN for other tasks than classes.
    """

    rows: int
    classes: int
    targets: Tensor | None = None
    ids: Int64[Tensor, " N"] | None = None
    labelled_fraction: float = 1.0
    task: Task = "classes"
    domains: tuple[str, ...] | None = None
    """The domains of the training rows; None: they have none, or they are not known."""


class Method(nn.Module, abc.ABC):
    """One distillation algorithm, with the modules that it adds: projectors, gates, masks, queues.

    The student and the teachers are arguments, never attributes: they are not in a method's state.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"classes"})
    """The kinds of targets that the method supports; a plan refuses the others before training."""
    batch_relational: ClassVar[bool] = False
    """Whether rows are compared with each other: ranks gather rows, and micro-batches are refused."""
    least_rows: ClassVar[int] = 1
    """Least number of rows per batch for a comparison."""
    judged_by_targets: ClassVar[bool] = True
    """Whether `validate` needs targets, so that a validation split without targets gives no score."""
    trains_logits: ClassVar[bool] = True
    """Whether the student's logits learn; if not, a run judges the student by probes of its embedding."""
    labelled_only: ClassVar[bool] = False
    """Whether an epoch draws only labelled rows, in as many steps as one over all rows."""
    symmetric: ClassVar[bool] = False
    """Whether learner and trained teachers are interchangeable, so that runs with swapped roles share the stage."""

    @abc.abstractmethod
    def needs(self) -> Mapping[str, frozenset[Signal]]:
        """The needed signals, by network name; `STUDENT` is the learner."""

    @abc.abstractmethod
    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """The terms of one step. Must not change state; `after_step` does."""

    def parts(self) -> Mapping[str, nn.Module]:
        """Modules of this method whose best epoch is selected separately, by their names in `validate`."""
        return {}

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        """Validation scores (lower is better): for each separately selected part, one number per scored row.

        The default is the student's loss of the task (`task_loss`) on all rows with a target, hidden ones included.
        """
        outputs = student(batch)
        assert batch.targets is not None
        rows = task_loss(batch.task, outputs.need(Signal.LOGITS), outputs.of(batch.targets))
        return {STUDENT: rows[outputs.of(batch.has_target())]}

    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        """Measure salience or statistics in a pass over the training data before the first step, without training."""

    def after_step(self, batch: Batch, step: Step) -> None:
        """Update state (queues, centres); no other method may change it."""

    def epoch_logs(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        """Numbers to log for an epoch, from the sums of the logs of its steps."""
        return {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "graduates" in vars(cls):
            _warn_of_old_name(cls, "graduates", "next_teachers")
            # mypy forbids what the old name is for: another function in the place of this class's method.
            cls.next_teachers = vars(cls)["graduates"]  # type: ignore[method-assign]

    def next_teachers(self, teachers: Mapping[str, Teacher]) -> Mapping[str, Teacher]:
        """The teachers of the next stage."""
        return teachers


def _warn_of_old_name(cls: type, old: str, name: str) -> None:
    text = f"{cls.__name__}.{old} is called {name} now; the old name will be removed in version 0.2"
    warnings.warn(text, DeprecationWarning, stacklevel=3)


ActsOn = Literal["logits", "last", "maps", "last map", "student's layers"]
"""The compared outputs: logits; penultimate layers; spatial layers, or the deepest of them; or spatial and penultimate
layers of the student only."""


Activation = Literal["before", "after"]
"""Whether features are read before or after the activation of their layer."""


class MethodConfig(BaseModel, abc.ABC):
    """Frozen hyper-parameters of one method, defined in the method's file; `name` is its name in recipes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    makes_next_teachers: ClassVar[bool] = False
    """Whether `next_teachers` makes new teachers: later stages cannot be checked if this stage has faults."""
    graduating: ClassVar[bool]
    """The old name of `makes_next_teachers`, which subclasses may set until version 0.2."""
    trains_teachers: ClassVar[bool] = False
    """Whether the teachers train with the student, unless the stage sets `trains`."""
    acts_on: ClassVar[ActsOn | None] = None
    """The compared outputs, if its recipe is one stage with pretrained teachers; None: a handwritten recipe."""
    activation: ClassVar[Activation] = "after"
    """The published position of features, for layers with taps both before and after their activation."""

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that recipes and run folders have only where they differ from their default: they came later."""

    name: str

    @model_serializer(mode="wrap")
    def _plain(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = type(self).model_fields
        defaults = {name: fields[name].get_default(call_default_factory=True) for name in self.added}
        unset = {name for name, default in defaults.items() if getattr(self, name) == default}
        return {name: value for name, value in handler(self).items() if name not in unset}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "graduating" in vars(cls):
            _warn_of_old_name(cls, "graduating", "makes_next_teachers")
            cls.makes_next_teachers = cls.graduating
        if "settled" in vars(cls):
            _warn_of_old_name(cls, "settled", "choose_layers")
            # As in `Method.__init_subclass__`.
            cls.choose_layers = vars(cls)["settled"]  # type: ignore[method-assign]

    @abc.abstractmethod
    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Build the method for networks of these sizes.

        Raises:
            ApplicabilityError: the method does not apply to them; names the reason.
            SignalError: a network lacks a needed tap or output.
        """

    def choose_layers(
        self, networks: Mapping[str, Network], batch: Batch
    ) -> tuple["MethodConfig", Mapping[str, Sequence[str]]]:
        """The settings with open choices made from the teachers' networks, and the layers that these choices name.

        The choice must be a function of the networks: a resumed run makes it again.

        Raises:
            ApplicabilityError: a teacher has no candidate; names the teacher.
        """
        return self, {}

    def settled(
        self, networks: Mapping[str, Network], batch: Batch
    ) -> tuple["MethodConfig", Mapping[str, Sequence[str]]]:
        """The old name of `choose_layers`, until version 0.2."""
        _warn_of_old_name(type(self), "settled", "choose_layers")
        return self.choose_layers(networks, batch)

    def chosen_besides(self, given: "MethodConfig") -> str:
        """A description of the choices that the given settings left open; empty if there are none."""
        mine, theirs = self.model_dump(mode="json"), given.model_dump(mode="json")
        return "; ".join(f"{name} = {value}" for name, value in mine.items() if value != theirs.get(name))

    def note(self) -> Mapping[str, Any]:
        """Facts shown by `crossdistill list methods`: paper, year."""
        return {}


def task_term(
    outputs: Outputs, batch: Batch, *, hidden: bool = True, fraction: float = 1.0, weight: float = 1.0
) -> Term:
    """The loss of the task on labelled rows; with `hidden`, without the labels hidden from the student."""
    assert batch.targets is not None
    rows: Float[Tensor, " R"] = task_loss(batch.task, outputs.need(Signal.LOGITS), outputs.of(batch.targets))
    known = outputs.of(batch.student_rows() if hidden else batch.has_target())
    return Term(rows.where(known, 0.0), weight, "task", fraction)
