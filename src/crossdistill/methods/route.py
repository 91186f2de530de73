"""MST-Distill's third stage: a gate selects k specialised teachers for each row (Li et al., 2025, Eq. 9-17)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.balance import balance_cv, balance_kl
from crossdistill.losses.routing import picked_teachers, routed_kl, weighted_kl
from crossdistill.method import DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.methods.logit_method import needs_logits
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.nets.gate import GateNet, GateNetDense
from crossdistill.outputs import Outputs, OutputSpec, Signal, spread
from crossdistill.teacher import Teacher


class Route(MethodConfig):
    """Task loss, distillation from the teachers that the gate selects per row, and balance loss of the gate.

    `routing="balanced"` is the paper's form: the selection is hard, so only the balance term trains the gate.
    `routing="learned"` weights each selected divergence by its gate probability, so that it trains the gate too.
    `routing="mean"` has no gate: the mean over all teachers, with the same weights and schedule (ablations a and e).
    """

    name: Literal["route"] = "route"
    k: int = Field(1, ge=1)
    """Number of teachers that the gate selects for each row."""
    routing: Literal["balanced", "learned", "mean"] = "balanced"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T², as the released code does (the paper writes none)."""
    reduce: Literal["sum", "mean"] = "sum"
    """Reduction over the k selected teachers: the sum in the paper (Eq. 14), the mean in the released code."""
    balance: Literal["kl", "cv", "none"] = "kl"
    balance_divided: bool = False
    """Divide the balance KL by the number of teachers (the released code)."""
    weight_task: float = Field(1.0, ge=0)
    weight_distil: float = Field(1.0, ge=0)
    """λ1 at the start."""
    weight_balance: float = Field(1.0, ge=0)
    """λ2 at the start."""
    distil_decay: float = Field(0.5, gt=0, le=1)
    distil_decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps λ1 constant."""
    balance_decay: float = Field(0.9, gt=0, le=1)
    balance_decay_every: int | None = Field(10, ge=1)
    decay_after_first: bool = False
    """Apply the first decay right after epoch 0 (the released code)."""
    gate_activation: bool = True
    """ReLU between the gate's layers; without it the gate is affine (the released code)."""
    gate_detached: bool = False
    """Detach the student's logits at the gate's input, so that the balance term does not train the student (in Eq. 11,
    12 and 18 and in the released code it does)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds the gate over all teachers.

        Raises:
            ApplicabilityError: fewer than two teachers, k above their number, or logits of different shapes.
        """
        require_same_logits(self.name, student, teachers)
        if self.routing != "mean" and (len(teachers) < 2 or self.k > len(teachers)):
            raise ApplicabilityError(
                f"route selects {self.k} of at least two teachers for each row; this stage has {len(teachers)}: "
                f"{sorted(teachers)}"
            )
        if self.routing == "mean":
            return _Mean(self, tuple(teachers), data.labelled_fraction)
        return _Route(self, student, tuple(teachers), data.labelled_fraction)

    def distil_at(self, epoch: int) -> float:
        """λ1 in an epoch, counted from 0."""
        return self.weight_distil * self._decayed(self.distil_decay, self.distil_decay_every, epoch)

    def balance_at(self, epoch: int) -> float:
        """λ2 in an epoch, counted from 0."""
        return self.weight_balance * self._decayed(self.balance_decay, self.balance_decay_every, epoch)

    def _decayed(self, factor: float, every: int | None, epoch: int) -> float:
        if every is None:
            return 1.0
        return float(factor ** ((epoch + every - 1) // every if self.decay_after_first else epoch // every))


class _Mean(Method):
    """Task loss, and the mean divergence from all teachers with outputs for a row."""

    def __init__(self, config: Route, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config, fraction = self.config, self.labelled_fraction
        outputs = student(batch)
        logits = outputs.need(Signal.LOGITS)
        guides, seen = _stacked_logits(batch, outputs, [teachers[name] for name in self.teachers])
        # A gate that selects all teachers; their order does not matter.
        gate = logits.new_zeros(len(logits), len(guides))
        rows = routed_kl(
            logits,
            guides,
            gate,
            len(guides),
            config.temperature,
            reduce="mean",
            squared=config.squared,
            available=seen,
        )
        terms = {
            "task": task_term(outputs, batch, fraction=fraction, weight=config.weight_task),
            "distil": Term(rows, config.distil_at(progress.epoch)),
        }
        return Step(terms, outputs)


class _Route(Method):
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: Route, student: OutputSpec, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction
        assert student.logits is not None
        dense = len(student.logits) > 1
        self.gate: nn.Module = (
            GateNetDense(student.classes, len(teachers))
            if dense
            else GateNet(student.classes, len(teachers), activation=config.gate_activation)
        )

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return needs_logits(self.teachers)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config, fraction = self.config, self.labelled_fraction
        outputs = student(batch)
        logits = outputs.need(Signal.LOGITS)
        gate = self.gate(logits.detach() if config.gate_detached else logits)
        guides, seen = _stacked_logits(batch, outputs, [teachers[name] for name in self.teachers])
        # A teacher without outputs for a row cannot be selected for it.
        limits: dict[str, Any] = {"squared": config.squared, "available": seen}
        rows = (
            weighted_kl(logits, guides, gate, config.k, config.temperature, renormalise=False, **limits)
            if config.routing == "learned"
            else routed_kl(logits, guides, gate, config.k, config.temperature, reduce=config.reduce, **limits)
        )
        terms = {
            "task": task_term(outputs, batch, fraction=fraction, weight=config.weight_task),
            "distil": Term(rows, config.distil_at(progress.epoch)),
        }
        picks = picked_teachers(gate, config.k, seen)
        gates, chosen = progress.gather(torch.cat([gate, picks.to(gate.dtype)], 1)).split(len(self.teachers), 1)
        if config.balance != "none":
            value = balance_cv(gates) if config.balance == "cv" else balance_kl(gates, config.balance_divided)
            terms["balance"] = Term(value, config.balance_at(progress.epoch), "balance")
        share = gates.detach().softmax(1).sum(0) / max(1, len(gates))
        count = chosen.detach().float().sum(0)
        logs = {f"gate/{name}": share[i] for i, name in enumerate(self.teachers)}
        logs |= {f"chosen_rows/{name}": count[i] for i, name in enumerate(self.teachers)}
        return Step(terms, outputs, logs=logs)

    def epoch_logs(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        """The fraction of an epoch's selections that each teacher received; the sum is 1."""
        counts = {name: totals[f"chosen_rows/{name}"] for name in self.teachers}
        return {f"chosen/{name}": count / max(1.0, sum(counts.values())) for name, count in counts.items()}


def _stacked_logits(batch: Batch, student: Outputs, teachers: Sequence[Teacher]) -> tuple[Tensor, Tensor]:
    """Detached logits of all teachers (K, R, C) on the student's rows, and which teachers have outputs (R, K)."""
    spreads = [spread(teacher(batch), len(batch)) for teacher in teachers]
    logits = torch.stack([student.of(logits) for logits, _ in spreads])
    return logits.detach(), torch.stack([student.of(seen) for _, seen in spreads], 1)
