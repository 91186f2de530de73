"""Supervised training on labels only: for a student without teachers, and for training the teachers."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch, Task
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.task import EVERY_TASK, task_loss
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class Supervised(MethodConfig):
    """Cross-entropy, or the loss of another task, on labelled rows; an epoch has as many steps as one over all rows.

    With weights, `mean(w[y] · CE) / mean(w[y])`: the first mean is over a step's rows, the second over all labelled
    training rows. For all rows in one batch this equals `torch.nn.functional.cross_entropy(weight=w)`, which divides by
    the weights of its batch; here the divisor is constant, so that micro-batches and ranks sum to the whole batch, and
    a common factor of the weights has no effect. The validation loss has the same weights.
    """

    added: ClassVar[frozenset[str]] = frozenset({"smooth"})
    name: Literal["supervised"] = "supervised"
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """A weight for each class (dimensionless); "balanced": N / (C · n_c) with n_c of the N labelled training rows. For
    multi-label the weight of each label's positive rows; "balanced": its negative rows / its positive rows."""
    smooth: float | None = Field(None, gt=0)
    """For a regression smooth-L1 error, linear from this error on, in standard deviations; None: squared error."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a method that reads only the learner's logits.

        Raises:
            ApplicabilityError: the number of weights is not the number of classes, or all labelled rows have weight 0.
        """
        if self.smooth is not None and data.task != "regression":
            raise ApplicabilityError(f"supervised: smooth is for a regression, and the targets are {data.task}")
        if self.class_weights is not None and data.task not in ("classes", "multi-label"):
            raise ApplicabilityError(f"supervised: class_weights are for classes and labels, not for {data.task}")
        if data.task == "multi-label":
            return _Supervised(None, self.smooth, self._positive(data))
        return _Supervised(None if self.class_weights is None else self._weights(data), self.smooth)

    def _positive(self, data: DataSpec) -> Float[Tensor, " C"] | None:
        """The weight of each label's positive rows."""
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            assert data.targets is not None
            positive, negative = ((data.targets == value).sum(0).float() for value in (1, 0))
            return torch.where(positive > 0, negative / positive.clamp(min=1), 1.0).cpu()
        if len(self.class_weights) != data.classes:
            raise ApplicabilityError(
                f"supervised: class_weights hold {len(self.class_weights)} numbers for {data.classes} labels"
            )
        return torch.tensor(self.class_weights)

    def _weights(self, data: DataSpec) -> Float[Tensor, " C"]:
        if data.targets is None or data.targets.ndim != 1:
            raise ApplicabilityError("supervised: class_weights need one class number for each training row")
        known = data.targets[data.targets != MISSING_TARGET].cpu()
        counts = torch.bincount(known, minlength=data.classes).double()
        if self.class_weights == "balanced":
            # C counts only the classes that occur: a class without rows has weight 0.
            weights = torch.where(counts > 0, len(known) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)
        else:
            weights = torch.tensor(self.class_weights, dtype=torch.float64)
        if len(weights) != data.classes:
            raise ApplicabilityError(
                f"supervised: class_weights hold {len(weights)} numbers for {data.classes} classes"
            )
        mean = float((counts * weights).sum() / counts.sum())
        if len(known) and not 0 < mean < float("inf"):
            raise ApplicabilityError(
                f"supervised: class_weights {weights.tolist()} have the mean {mean:g} over the labelled training rows; "
                "wanted one above 0"
            )
        return (weights / mean if len(known) else weights).float()


class _Supervised(Method):
    labelled_only: ClassVar[bool] = True
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK - {"none"}
    weights: Tensor | None
    positive: Tensor | None

    def __init__(self, weights: Tensor | None, smooth: float | None = None, positive: Tensor | None = None) -> None:
        super().__init__()
        self.smooth = smooth
        # Recomputed from the data when the method is built, so it is not saved.
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("positive", positive, persistent=False)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return {STUDENT: frozenset({Signal.LOGITS})}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        known = outputs.of(batch.student_rows())
        return Step({"task": Term(self._losses(outputs, batch).where(known, 0.0), 1.0, "task")}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        outputs = student(batch)
        return {STUDENT: self._losses(outputs, batch)[outputs.of(batch.has_target())]}

    def _losses(self, outputs: Outputs, batch: Batch) -> Float[Tensor, " R"]:
        assert batch.targets is not None
        targets = outputs.of(batch.targets)
        logits = outputs.need(Signal.LOGITS)
        rows = task_loss(batch.task, logits, targets, smooth=self.smooth, positive=self.positive)
        return rows if self.weights is None else rows * self.weights[targets.clamp(min=0)]
