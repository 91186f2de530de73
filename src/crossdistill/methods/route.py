"""MST-Distill's third stage: a gate sends each row to some of the specialised teachers (Li et al., 2025, Eq. 9-17)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.combination import require_same_logits
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.balance import balance_cv, balance_kl
from crossdistill.losses.routing import routed_kl, weighted_kl
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, task_term
from crossdistill.nets.gate import GateNet, GateNetDense
from crossdistill.outputs import Outputs, OutputSpec, Want, spread
from crossdistill.teacher import Teacher


class Route(MethodConfig):
    """Task, distillation from the teachers that the gate picks for a row, and balance of the gate.

    `routing="balanced"` is the paper's: the choice is hard, so only the balance term trains the gate.
    `routing="learned"` weights each chosen divergence by its gate probability, so that the gate receives its gradient.
    """

    name: Literal["route"] = "route"
    k: int = Field(1, ge=1)
    """Teachers for each row."""
    routing: Literal["balanced", "learned"] = "balanced"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T², as the released code does (the paper writes none)."""
    reduce: Literal["sum", "mean"] = "sum"
    """Over the k chosen teachers: the paper adds up (Eq. 14), the released code averages."""
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
    """In epochs; None keeps λ1 constant."""
    balance_decay: float = Field(0.9, gt=0, le=1)
    balance_decay_every: int | None = Field(10, ge=1)
    decay_after_first: bool = False
    """Let the first decay come right after epoch 0 (the released code)."""
    gate_activation: bool = True
    """ReLU between the gate's layers; without it the gate is affine (the released code)."""
    gate_detached: bool = True
    """Keep the balance term's gradient out of the student (the released code lets it in)."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds the gate over as many teachers as there are.

        Raises:
            ApplicabilityError: fewer than two teachers, k above their number, or other logits than the student's.
        """
        require_same_logits(self.name, student, teachers)
        if len(teachers) < 2 or self.k > len(teachers):
            raise ApplicabilityError(
                f"route chooses {self.k} of several teachers for each row; here are {len(teachers)}: {sorted(teachers)}"
            )
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


class _Route(Method):
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: Route, student: OutputSpec, teachers: tuple[str, ...], labelled_fraction: float) -> None:
        super().__init__()
        assert student.logits is not None
        self.config = config
        self.teachers = teachers
        self.labelled_fraction = labelled_fraction
        dense = len(student.logits) > 1
        self.gate: nn.Module = (
            GateNetDense(student.classes, len(teachers))
            if dense
            else GateNet(student.classes, len(teachers), activation=config.gate_activation)
        )

    def needs(self) -> Mapping[str, frozenset[Want]]:
        return dict.fromkeys((STUDENT, *self.teachers), frozenset({Want.LOGITS}))

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        config = self.config
        outputs = student(batch)
        mine = outputs.need(Want.LOGITS)
        gate = self.gate(mine.detach() if config.gate_detached else mine)
        given, seen = self._teachers(batch, outputs, teachers)
        # A teacher that did not see a row cannot be chosen for it.
        rows = (
            weighted_kl(
                mine,
                given,
                gate,
                config.k,
                config.temperature,
                renormalise=False,
                squared=config.squared,
                available=seen,
            )
            if config.routing == "learned"
            else routed_kl(
                mine,
                given,
                gate,
                config.k,
                config.temperature,
                reduce=config.reduce,
                squared=config.squared,
                available=seen,
            )
        )
        terms = {
            "task": task_term(outputs, batch, fraction=self.labelled_fraction, weight=config.weight_task),
            "distil": Term(rows, config.distil_at(progress.epoch)),
        }
        everyone = progress.gather(gate)
        if config.balance != "none":
            value = balance_cv(everyone) if config.balance == "cv" else balance_kl(everyone, config.balance_divided)
            terms["balance"] = Term(value, config.balance_at(progress.epoch), "balance")
        share = everyone.detach().softmax(1).sum(0) / max(1, len(everyone))
        return Step(terms, outputs, logs={f"gate/{name}": share[i] for i, name in enumerate(self.teachers)})

    def _teachers(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]) -> tuple[Tensor, Tensor]:
        """Logits of all teachers (K, R, C) on the student's rows, and who saw which row (R, K)."""
        pairs = [spread(teachers[name](batch), len(batch)) for name in self.teachers]
        logits = torch.stack([student.of(whole) for whole, _ in pairs])
        return logits.detach(), torch.stack([student.of(seen) for _, seen in pairs], 1)
