"""Relational distillation: distances and angles between rows are kept (Park et al., CVPR 2019)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.losses.rkd import rkd_angle, rkd_distance
from crossdistill.method import ActsOn, DataSpec, Method, Progress, module_key
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, Pair, VectorOf, vector, vector_size
from crossdistill.methods.loss_weights import Mixed
from crossdistill.nets.projector import UnitEmbedding
from crossdistill.outputs import OutputSpec


class RKD(Mixed, FeatureConfig):
    """`(1 - a) · CE + a · (distances + 2 · angles)`, by default on the embedding or the last tap, as they are.

    mdistiller's weights are `fixed=(1, 1)`, `weight_distance=25`, `weight_angle=50`. MST-Distill's released code is
    `width=128` and `maps="max-pooled"`.
    """

    acts_on: ClassVar[ActsOn | None] = "last"
    name: Literal["rkd"] = "rkd"
    weight_distance: float = Field(1.0, ge=0)
    weight_angle: float = Field(2.0, ge=0)
    width: int | None = Field(None, ge=1)
    """Compare unit vectors of this size, made by a linear map on either side."""
    maps: VectorOf = "mean"
    """How a feature with positions becomes a vector: each channel's mean, or all positions after 2x2 max-pooling."""
    teacher_map: Literal["random", "trained"] = "random"
    """With `width`: whether the teachers' maps stay as they were drawn (the released code) or learn too."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """One feature of each network; sizes may differ."""
        return _RKD(self, self.pairs("vector", student, teachers), data.labelled_fraction)


class _RKD(FeatureMethod):
    batch_relational: ClassVar[bool] = True
    least_rows: ClassVar[int] = 3

    def __init__(self, config: RKD, pairs: Mapping[str, Sequence[Pair]], labelled_fraction: float) -> None:
        super().__init__(config, pairs, labelled_fraction)
        self.mine, self.theirs = nn.ModuleDict(), nn.ModuleDict()
        if config.width is not None:
            for name, found in pairs.items():
                self.mine[module_key(name)] = UnitEmbedding(vector_size(found[-1].mine, config.maps), config.width)
                self.theirs[module_key(name)] = UnitEmbedding(vector_size(found[-1].theirs, config.maps), config.width)

    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        own, other = (vector(side[-1], self.config.maps) for side in (mine, theirs))
        if self.config.width is not None:
            own = self.mine[module_key(teacher)](own)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.teacher_map == "trained"):
                other = self.theirs[module_key(teacher)](other)
        own, other = progress.gather(own), progress.gather(other)
        return {
            "distance": self.config.weight_distance * rkd_distance(own, other),
            "angle": self.config.weight_angle * rkd_angle(own, other),
        }
