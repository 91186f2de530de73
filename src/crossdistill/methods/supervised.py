"""Supervised training on labels only: for a student without teachers, and for training the teachers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, task_term
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class Supervised(MethodConfig):
    """Cross-entropy on labelled rows; an epoch has as many steps as one over all rows.

    With weights, `mean(w[y] · CE) / mean(w[y])`: the first mean is over a step's rows, the second over all labelled
    training rows. For all rows in one batch this equals `torch.nn.functional.cross_entropy(weight=w)`, which divides by
    the weights of its batch; here the divisor is constant, so that micro-batches and ranks sum to the whole batch, and
    a common factor of the weights has no effect. The validation loss has the same weights.
    """

    name: Literal["supervised"] = "supervised"
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """A weight for each class (dimensionless); "balanced": N / (C · n_c) with n_c of the N labelled training rows."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a method that reads only the learner's logits.

        Raises:
            ApplicabilityError: the number of weights is not the number of classes, or all labelled rows have weight 0.
        """
        return _Supervised(None if self.class_weights is None else self._weights(data))

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
    weights: Tensor | None

    def __init__(self, weights: Tensor | None) -> None:
        super().__init__()
        # Recomputed from the data when the method is built, so it is not saved.
        self.register_buffer("weights", weights, persistent=False)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return {STUDENT: frozenset({Signal.LOGITS})}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        term = task_term(outputs, batch)
        return Step({"task": replace(term, value=self._weighted(term.value, outputs, batch))}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        if self.weights is None:
            return super().validate(batch, student, teachers)
        outputs = student(batch)
        term = task_term(outputs, batch, hidden=False)
        return {STUDENT: self._weighted(term.value, outputs, batch)[outputs.of(batch.has_target())]}

    def _weighted(self, rows: Tensor, outputs: Outputs, batch: Batch) -> Tensor:
        if self.weights is None:
            return rows
        assert batch.targets is not None
        return rows * self.weights[outputs.of(batch.targets).clamp(min=0)]
