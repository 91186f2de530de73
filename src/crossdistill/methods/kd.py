"""Knowledge distillation: KL divergence between softened predictions (Hinton et al., 2015); for every kind of task."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.kl import distillation_kl
from crossdistill.losses.sigmoid_kl import sigmoid_kl
from crossdistill.losses.squared_error import squared_error
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, MethodConfig, Progress, Step, task_term
from crossdistill.methods.logit_method import (
    LogitConfig,
    needs_logits,
    student_logits,
    teacher_predictions,
)
from crossdistill.methods.loss_weights import AlphaDecay, weighted_step
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher

Form = Literal["softmax", "sigmoid", "squared"]
FORMS: Mapping[Task, Form] = MappingProxyType(
    {"classes": "softmax", "soft": "softmax", "none": "softmax", "multi-label": "sigmoid", "regression": "squared"}
)
"""The form of the comparison for each kind of targets."""
FITTING: Mapping[Task, tuple[Form, ...]] = MappingProxyType(
    {**{task: (form,) for task, form in FORMS.items()}, "none": ("softmax", "sigmoid", "squared")}
)
COMPARED: Mapping[Form, str] = MappingProxyType(
    {
        "softmax": "one distribution over all classes",
        "sigmoid": "the probability of each label by itself",
        "squared": "the predicted numbers",
    }
)


class KD(LogitConfig):
    """`(1 - a) · CE + a · T² · KL(teacher ‖ student)`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its baselines: T = 4, a from 0.5, halved every 30 epochs. Dense
    logits are compared pixel by pixel.

    The task's loss stands for CE, and the form of the comparison follows the kind of the targets: multi-label
    predictions are compared label by label (`sigmoid_kl`), those of a regression by their mean squared error.
    """

    added: ClassVar[frozenset[str]] = frozenset({"form"})
    acts_on: ClassVar[ActsOn | None] = "logits"
    name: Literal["kd"] = "kd"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay; mdistiller uses (0.1, 0.9)."""
    temperature: float = Field(4.0, gt=0)
    """Temperature of both predictions (dimensionless)."""
    form: Form | None = None
    """"softmax": one distribution over all classes; "sigmoid": one for each label, for multi-label; "squared": the
    squared error, for a regression; None: the one for the data's task."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all networks have logits over the same classes, and that the form fits the targets.

        Raises:
            ApplicabilityError: a softmax for targets that are no distribution, or networks that cannot be compared.
        """
        form = self.form or FORMS[data.task]
        if form not in FITTING[data.task]:
            raise ApplicabilityError(
                f"kd: form={form!r} compares {COMPARED[form]}, and the targets are {data.task}: take "
                f"form={FORMS[data.task]!r}, which compares {COMPARED[FORMS[data.task]]}"
            )
        self.check(student, teachers, fewest=2 if form == "softmax" else 1)
        if form != "softmax" and self.standardise:
            raise ApplicabilityError(f"kd: standardise is for form='softmax', and the form here is {form!r}")
        return _KD(self, teachers, data.labelled_fraction, form)

    def choose_layers(
        self, networks: Mapping[str, Network], batch: Batch
    ) -> tuple[MethodConfig, Mapping[str, Sequence[str]]]:
        """The settings with the form for the batch's kind of targets, where that is not the published one."""
        form = FORMS[batch.task]
        return self if self.form or form == "softmax" else self.model_copy(update={"form": form}), {}

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _KD(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK

    def __init__(self, config: KD, teachers: Iterable[str], labelled_fraction: float, form: Form = "softmax") -> None:
        super().__init__()
        self.form = form
        self.config = config
        self.teachers = tuple(teachers)
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        """Runs student and teachers; returns the cross-entropy and the divergences, weighted for this epoch."""
        teachers = {name: teachers[name] for name in self.teachers}
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        logits, temperature = student_logits(self.config, outputs), self.config.temperature
        terms = {}
        for prediction in teacher_predictions(self.config, outputs, batch, teachers):
            if self.form == "squared":
                rows = squared_error(logits, prediction.mean())
            elif self.form == "sigmoid":
                rows = sigmoid_kl(logits, prediction.at_labels(temperature), temperature)
            else:
                rows = distillation_kl(logits, prediction.at(temperature), temperature)
            terms[f"kd/{prediction.name}"] = prediction.term(rows)
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
