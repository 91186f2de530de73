"""Fused teachers on the validation split, before training: accuracy and calibration of the parts and of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crossdistill.bank.fused import Fusion
from crossdistill.data.targets import has_target
from crossdistill.losses.kl import kl_divergence, log_probabilities
from crossdistill.methods.richkd import RichKDConfig
from crossdistill.outputs import Outputs, Signal, spread
from crossdistill.planning.plan import Job
from crossdistill.runtime.progress import counted
from crossdistill.teacher import TeacherBase
from crossdistill.training.calibration import Calibration, calibration
from crossdistill.training.evaluation import batches

MOVES = 1e-3
"""Least divergence, in nats, by which the other parts move the target of the main one. RichKD's unscaled cosines move
it by 7e-6, cosines times 100 by 8e-2."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class PartLogits:
    """Logits of the parts of a fused teacher on rows that have a target, on the CPU in float64; zeros where absent."""

    logits: Mapping[str, Float[Tensor, "N C"]]
    seen: Mapping[str, Bool[Tensor, " N"]]
    targets: Int64[Tensor, " N"]

    def fused(self, fusion: Fusion, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The fused logits, and the targets, of the rows that any part has."""
        parts = {}
        for name in fusion.coefficients:
            there = self.seen[name][rows]
            parts[name] = Outputs(name, self.logits[name][rows][there], rows=there.nonzero().flatten())
        logits, seen = fusion.logits(parts, len(self.targets[rows]))
        return logits[seen], self.targets[rows][seen]

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """The logits of a part, and the targets of its rows."""
        return self.logits[name][self.seen[name]], self.targets[self.seen[name]]

    def both(self, one: str, other: str) -> tuple[Tensor, Tensor]:
        """The logits of two parts on the rows that both have."""
        rows = self.seen[one] & self.seen[other]
        return self.logits[one][rows], self.logits[other][rows]


@torch.no_grad()
def part_logits(job: Job, device: torch.device) -> PartLogits | None:
    """The logits of a stage's teachers on the validation rows, read from banks where there are any.

    None if the stage fuses no logits, a part is missing, or no validation row has a class. Never reads the test split.
    """
    method = job.stage.method
    if not isinstance(method, RichKDConfig) or not method.weight_logits or job.dataset.task != "classes":
        return None
    if any(teacher.spec.logits is None for teacher in job.teachers.values()):
        return None
    sources = {
        name: TeacherBase.of(teacher).unshuffled.select({Signal.LOGITS}) for name, teacher in job.teachers.items()
    }
    rows = job.dataset.splits["validation"]
    rows = rows[has_target(job.dataset.targets[rows])]
    if not len(rows):
        return None
    for module in (module for source in sources.values() for module in source.modules()):
        module.eval()
    needed = {name for source in sources.values() for name in source.inputs_needed}
    values: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in sources}
    for batch in batches(job.dataset, rows, device, ROWS_AT_ONCE, only=needed):
        for name, source in sources.items():
            logits, seen = spread(source(batch), len(batch))
            values[name].append((logits.double().cpu(), seen.cpu()))
    joined = {name: [torch.cat(parts) for parts in zip(*pairs, strict=True)] for name, pairs in values.items()}
    both = ({name: pair[number] for name, pair in joined.items()} for number in (0, 1))
    return PartLogits(next(both), next(both), job.dataset.targets[rows])


def measured(logits: Tensor, targets: Tensor) -> Calibration:
    """Accuracy, NLL (nats) and ECE of logits, at temperature 1."""
    return calibration(logits.double().softmax(1), targets)


@dataclass(frozen=True, slots=True)
class FusionReport:
    """What the parts of a fused teacher know, what the fusion makes of it, and how much the others move the target."""

    main: str
    parts: Mapping[str, Calibration]
    fused: Calibration
    agreement: Mapping[str, float]
    """Fraction of the common rows in which a part and the main one predict the same class."""
    moved: float
    """Mean KL(fused target ‖ target of the main part's term alone), in nats, at the temperature of distillation."""
    changed: float
    """Mean total variation of the two, from 0 to 1."""
    spread: Mapping[str, float]
    """Mean standard deviation of a row's logits over the classes, after the part's temperature."""
    temperature: float
    alpha: float

    @property
    def moves(self) -> bool:
        """Whether the other parts move the target."""
        return self.moved >= MOVES

    def text(self) -> str:
        """One line for the display."""
        named = {**self.parts, "fused": self.fused}
        each = [f"{name} accuracy {c.accuracy:.3f}, NLL {c.nll:.3f}, ECE {c.ece:.3f}" for name, c in named.items()]
        agree = [f"{name} agrees with {self.main} in {100 * part:.0f} %" for name, part in self.agreement.items()]
        moved = f"KL(fused ‖ {self.alpha:.3g} · {self.main}) {self.moved:.2g} nats at T = {self.temperature:g}"
        return f"{counted(self.fused.rows, 'validation row')}: {'; '.join([*each, *agree, moved])}"

    def warning(self) -> str:
        """What is wrong where the other parts do not move the target, and what to do."""
        others = [name for name in self.parts if name != self.main]
        if self.alpha == 1:
            return f"{' and '.join(map(repr, others))} cannot move the target: alpha is 1, all of it is {self.main!r}"
        sizes = ", ".join(f"{name} {value:.3g}" for name, value in self.spread.items())
        return (
            f"{' and '.join(map(repr, others))} cannot move the target: KL(fused ‖ {self.alpha:.3g} · {self.main}) is "
            f"{self.moved:.2g} nats at T = {self.temperature:g} (total variation {self.changed:.2g}), so this is plain "
            f"distillation from {self.main!r} with flatter logits. Standard deviation of the logits over the classes: "
            f"{sizes}. Unscaled cosines look like this: leave out options.logit_scale, which is the model's own then, "
            f"or set the temperature of the part, as in temperatures.{others[0] if others else 'clip'}=0.01; "
            "`crossdistill tune-fusion` finds one"
        )


def fusion_report(parts: PartLogits, method: RichKDConfig) -> FusionReport:
    """Measures of the parts and of their fusion with the settings of a method."""
    fusion = method.fusion(tuple(parts.logits))
    main, *others = fusion.coefficients
    total = sum(fusion.coefficients.values())
    alpha = fusion.coefficients[main] / total
    scale = alpha / fusion.temperatures.get(main, 1.0)
    logits, targets = parts.fused(fusion)
    there = parts.seen[main]
    seen_at_all = torch.stack([parts.seen[name] for name in fusion.coefficients]).any(0)
    wanted = log_probabilities(logits[there[seen_at_all]], method.temperature)
    alone = log_probabilities(scale * parts.logits[main][there], method.temperature)
    agreement = {}
    for name in others:
        mine, theirs = parts.both(main, name)
        agreement[name] = float((mine.argmax(1) == theirs.argmax(1)).double().mean()) if len(mine) else float("nan")
    measures = {
        name: measured(parts.of(name)[0] / fusion.temperatures.get(name, 1.0), parts.of(name)[1])
        for name in fusion.coefficients
    }
    return FusionReport(
        main=main,
        parts=measures,
        fused=measured(logits, targets),
        agreement=agreement,
        moved=max(0.0, float(kl_divergence(wanted, alone).mean())),
        changed=float((wanted.exp() - alone.exp()).abs().sum(1).mean() / 2),
        spread={
            name: float(parts.of(name)[0].std(1).mean()) / fusion.temperatures.get(name, 1.0)
            for name in fusion.coefficients
        },
        temperature=method.temperature,
        alpha=alpha,
    )
