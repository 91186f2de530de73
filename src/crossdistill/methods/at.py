"""Attention transfer: matches the networks' spatial attention maps (Zagoruyko and Komodakis, ICLR 2017)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from crossdistill.batch import Batch, Task
from crossdistill.losses.at import attention_transfer
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs, require_positions
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class AT(FeatureConfig):
    """`CE + 1000 · Σ over stages of the attention maps' mean squared difference`; by default over all spatial taps."""

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["at"] = "at"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1000.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    power: float = Field(2.0, gt=0)
    """Exponent p (dimensionless): an attention map is the mean over channels of |feature|^p."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest.

        Raises:
            ApplicabilityError: the shared size of a pair is a single position.
        """
        pairs = self.pairs("maps", student, teachers)
        require_positions(self.name, pairs)
        return _AT(self, pairs, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _AT(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK

    def __init__(self, config: AT, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            if features.empty():
                terms[f"at/{features.name}"] = features.empty_term()
                continue
            stages = [attention_transfer(mine, theirs, self.config.power) for mine, theirs in features.pairs()]
            terms[f"at/{features.name}"] = features.term(torch.stack(stages).sum(0))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
