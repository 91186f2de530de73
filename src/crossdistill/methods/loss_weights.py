"""Weights of the task's and the teachers' terms in each epoch: two published schedules, and the weighted step.

The settings of a method have the fields of its schedule under the same names; `loss_weights` builds it from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from crossdistill.method import Progress, Step, Term
from crossdistill.outputs import Outputs


@dataclass(frozen=True, slots=True)
class AlphaDecay:
    """`(1 - a) · CE + a · loss`, with `a` cut by `decay` every `decay_every` epochs.

    The defaults are MST-Distill's shared protocol for its baselines: a from 0.5, halved every 30 epochs.
    """

    alpha: float = 0.5
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = 0.5
    decay_every: int | None = 30
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay; mdistiller uses (0.1, 0.9) for KD."""

    def at(self, epoch: int) -> tuple[float, float]:
        """Weights of the task and of distillation in an epoch, counted from 0."""
        if self.fixed is not None:
            return self.fixed
        alpha = self.alpha * (self.decay ** (epoch // self.decay_every) if self.decay_every else 1.0)
        return 1 - alpha, alpha


@dataclass(frozen=True, slots=True)
class Warmup:
    """`weight_task · CE + weight · loss`, where `weight` grows over the first epochs: mdistiller's protocol."""

    weight_task: float = 1.0
    weight: float = 1.0
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = 0
    """In epochs: in epoch e, counted from 0, the weight of distillation is multiplied by min((e + 1) / warm_up, 1)."""

    def at(self, epoch: int) -> tuple[float, float]:
        """Weights of the task and of distillation in an epoch, counted from 0."""
        return self.weight_task, self.weight * (min((epoch + 1) / self.warm_up, 1.0) if self.warm_up else 1.0)


LossWeights = AlphaDecay | Warmup


def weighted_step(
    weights: LossWeights,
    progress: Progress,
    student: Outputs,
    task: Term,
    terms: Mapping[str, Term],
    stash: Mapping[str, Tensor] | None = None,
) -> Step:
    """The task's term and the teachers' terms, multiplied by their weights in this epoch."""
    task_weight, distil_weight = weights.at(progress.epoch)
    weighted = {name: replace(term, weight=term.weight * distil_weight) for name, term in terms.items()}
    return Step({"task": replace(task, weight=task.weight * task_weight), **weighted}, student, stash=stash or {})
