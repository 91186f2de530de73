"""Relational distillation: matches distances and angles between rows (Park et al., CVPR 2019)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from crossdistill.batch import Batch, Task
from crossdistill.losses.rkd import rkd_angle, rkd_distance
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, module_key, task_term
from crossdistill.methods.feature_method import (
    FeatureConfig,
    VectorOf,
    paired_features,
    signals_of,
    vector,
    vector_size,
)
from crossdistill.methods.layer_choice import Pairs
from crossdistill.methods.loss_weights import AlphaDecay, weighted_step
from crossdistill.nets.projector import UnitEmbedding
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class RKD(FeatureConfig):
    """`(1 - a) · CE + a · (distances + 2 · angles)`, by default on the unmapped embedding or last tap.

    mdistiller's weights: `fixed=(1, 1)`, `weight_distance=25`, `weight_angle=50`. MST-Distill's released code:
    `width=128` and `maps="max-pooled"`.
    """

    acts_on: ClassVar[ActsOn | None] = "last"
    name: Literal["rkd"] = "rkd"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay."""
    weight_distance: float = Field(1.0, ge=0)
    weight_angle: float = Field(2.0, ge=0)
    width: int | None = Field(None, ge=1)
    """Compare unit vectors of this size, computed by a linear map on each side; None: no maps."""
    maps: VectorOf = "mean"
    """Conversion of a map to a vector: each channel's mean, or all positions after 2x2 max-pooling."""
    teacher_map: Literal["random", "trained"] = "random"
    """With `width`: whether the teachers' maps keep their random weights (the released code) or are trained."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Selects one feature of each network; sizes may differ."""
        return _RKD(self, self.pairs("vector", student, teachers), data.labelled_fraction)

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _RKD(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 3

    def __init__(self, config: RKD, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction
        self.mine, self.theirs = nn.ModuleDict(), nn.ModuleDict()
        if config.width is not None:
            for name, (*_, last) in pairs.items():
                self.mine[module_key(name)] = UnitEmbedding(vector_size(last.mine, config.maps), config.width)
                self.theirs[module_key(name)] = UnitEmbedding(vector_size(last.theirs, config.maps), config.width)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            mine, theirs = (vector(side[-1], self.config.maps) for side in (features.student, features.teacher))
            if self.config.width is not None:
                mine = self.mine[module_key(features.name)](mine)
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.teacher_map == "trained"):
                    theirs = self.theirs[module_key(features.name)](theirs)
            mine, theirs = progress.gather(mine), progress.gather(theirs)
            distance, angle = rkd_distance(mine, theirs), rkd_angle(mine, theirs)
            terms[f"distance/{features.name}"] = features.term(self.config.weight_distance * distance)
            terms[f"angle/{features.name}"] = features.term(self.config.weight_angle * angle)
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)
