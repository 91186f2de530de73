"""C2KD: mutual distillation of student and teachers through proxies, with a rank gate (Huo et al., 2024)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.losses.kl import distillation_kl
from crossdistill.losses.rank import kendall_tau_b, non_target_kl
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, Term, module_key, task_term
from crossdistill.methods.feature_method import FeatureConfig
from crossdistill.methods.layer_choice import Pair
from crossdistill.methods.logit_method import student_targets
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.nets.proxy import proxy_for
from crossdistill.outputs import Outputs, OutputSpec, Signal, picked, shared_rows
from crossdistill.teacher import Teacher


class C2KD(FeatureConfig):
    """Task losses of all networks, and divergences between each network and its proxy and between proxies.

    All weights and temperatures are 1. The divergence between proxies covers the classes other than the target, in both
    directions, on labelled rows in which their rankings of the classes agree (Kendall's τ_b above `threshold`). The
    input of a proxy is the embedding or the last tap (of dense networks, the last spatial one). The teachers are
    trained as well.
    """

    trains_teachers: ClassVar[bool] = True

    name: Literal["c2kd"] = "c2kd"
    threshold: float = Field(0.0, ge=-1, le=1)
    """Lower limit of τ_b; dimensionless."""
    gate: Literal["rows", "any", "none"] = "rows"
    """"rows": only rows above the threshold; "any": all rows if one is above it (the released code for dense labels);
    "none": all rows."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a proxy for the student and one for each teacher.

        Raises:
            ApplicabilityError: the shapes of logits differ, or a network has no feature besides its logits.
        """
        require_same_logits(self.name, student, teachers)
        assert student.logits is not None
        pairs = self.pairs("last" if len(student.logits) > 1 else "vector", student, teachers)
        last = {name: of_teacher[-1] for name, of_teacher in pairs.items()}
        return _C2KD(self, last, student.logits, data.labelled_fraction)


class _C2KD(Method):
    # The proxies normalise over the batch.
    batch_relational: ClassVar[bool] = True

    def __init__(
        self, config: C2KD, pairs: Mapping[str, Pair], logits: tuple[int, ...], labelled_fraction: float
    ) -> None:
        super().__init__()
        self.config = config
        self.pairs = dict(pairs)
        self.labelled_fraction = labelled_fraction
        first = next(iter(pairs.values()))
        self.tap = first.student
        self.mine = proxy_for(first.mine, logits)
        self.theirs = nn.ModuleDict({module_key(name): proxy_for(p.theirs, logits) for name, p in pairs.items()})

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        theirs = {name: frozenset({Signal.LOGITS, pair.teacher}) for name, pair in self.pairs.items()}
        return {STUDENT: frozenset({Signal.LOGITS, self.tap}), **theirs}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        proxy = Outputs(student.name, self.mine(outputs.need(self.tap), progress.gather), rows=outputs.rows)
        terms = {"task/student": task_term(outputs, batch, fraction=self.labelled_fraction)}
        terms |= _both_ways("student", outputs, proxy)
        passed = []
        for name, pair in self.pairs.items():
            guide = teachers[name](batch)
            terms[f"task/{name}"] = task_term(guide, teachers[name].sees(batch), hidden=False)
            guide_logits = self.theirs[module_key(name)](guide.need(pair.teacher), progress.gather)
            guide_proxy = Outputs(name, guide_logits, rows=guide.rows)
            terms |= _both_ways(name, guide, guide_proxy)
            between, gate = self._between(name, batch, proxy, guide_proxy, progress)
            terms |= between
            passed.append(gate.sum() / max(1, len(gate)))
        return Step(terms, outputs, logs={"gate": torch.stack(passed).mean()})

    def _between(
        self, name: str, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> tuple[dict[str, Term], Tensor]:
        """The divergences between two proxies without the target class, on their shared rows; and all ranks' gates."""
        left, right, _ = shared_rows(student, teacher)
        mine, theirs = picked(student.need(Signal.LOGITS), left), picked(teacher.need(Signal.LOGITS), right)
        gate = kendall_tau_b(mine.detach(), theirs.detach()) > self.config.threshold
        all_rows = progress.gather(gate.to(mine.dtype))
        if self.config.gate != "rows":
            gate = all_rows.any().expand_as(gate) if self.config.gate == "any" else torch.ones_like(gate)
        # The teacher's proxy must not pass a label to the student that is hidden from the student.
        known = gate & picked(student.of(batch.student_rows()), left)
        targets = picked(student_targets(student, batch), left)
        share, weight = self.labelled_fraction, 1 / len(self.pairs)
        to_student = non_target_kl(mine, theirs.detach(), targets).where(known, 0.0)
        to_teacher = non_target_kl(theirs, mine.detach(), targets).where(known, 0.0)
        terms = {
            f"others/{name}->student": Term(to_student, weight, share=share),
            f"others/student->{name}": Term(to_teacher, share=share),
        }
        return terms, all_rows


def _both_ways(name: str, network: Outputs, proxy: Outputs) -> dict[str, Term]:
    """The divergence of a proxy from its network, and that of the network from its proxy."""
    logits, proxy_logits = network.need(Signal.LOGITS), proxy.need(Signal.LOGITS)
    return {
        f"proxy/{name}": Term(distillation_kl(proxy_logits, logits.detach(), 1.0)),
        f"network/{name}": Term(distillation_kl(logits, proxy_logits.detach(), 1.0)),
    }
