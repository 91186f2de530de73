"""Variational information distillation: teachers' features are likely, given the student's (Ahn et al., 2019)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.losses.spatial import as_map, same_space
from crossdistill.losses.vid import gaussian_nll, log_scale_of
from crossdistill.method import ActsOn, DataSpec, Method, Progress, module_key
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, Pair, is_map
from crossdistill.methods.loss_weights import Weighted
from crossdistill.nets.regressor import ChannelRegressor
from crossdistill.outputs import OutputSpec


class VID(Weighted, FeatureConfig):
    """`CE + Σ over stages of -log N(teacher; regressed student, variance by channel)`.

    By default over all spatial taps, or the last taps where a network has none.
    """

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["vid"] = "vid"
    variance: float = Field(5.0, gt=1e-5)
    """At the start, in the teacher's unit squared."""
    train_variance: bool = True
    """The released code's variances never move: they are in no optimizer."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """A regressor and a variance for every channel of every pair."""
        spatial = all(any(map(is_map, spec.features.values())) for spec in (student, *teachers.values()))
        pairs = self.pairs("maps" if spatial else "vector", student, teachers, flat=True)
        return _VID(self, pairs, data.labelled_fraction)


class _VID(FeatureMethod):
    def __init__(self, config: VID, pairs: Mapping[str, Sequence[Pair]], labelled_fraction: float) -> None:
        super().__init__(config, pairs, labelled_fraction)
        self.stages = nn.ModuleDict(
            {
                module_key(f"{name}:{stage}"): _Stage(pair, config)
                for name, found in pairs.items()
                for stage, pair in enumerate(found)
            }
        )

    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        found = [
            self.stages[module_key(f"{teacher}:{stage}")](*pair)
            for stage, pair in enumerate(zip(mine, theirs, strict=True))
        ]
        return {"vid": torch.stack(found).sum(0)}


class _Stage(nn.Module):
    """What one feature of the student says of one of the teacher's: its mean, and how sure it is."""

    def __init__(self, pair: Pair, config: VID) -> None:
        super().__init__()
        self.regress = ChannelRegressor(pair.mine[0], pair.theirs[0])
        self.train_variance = config.train_variance
        self.log_scale = nn.Parameter(torch.full((pair.theirs[0],), log_scale_of(config.variance)))

    def forward(self, feature: Tensor, wanted: Tensor) -> Tensor:
        feature, wanted = same_space(as_map(feature), as_map(wanted))
        scale = self.log_scale if self.train_variance else self.log_scale.detach()
        return gaussian_nll(self.regress(feature), wanted, scale)
