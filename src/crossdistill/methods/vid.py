"""Variational information distillation: log-likelihood of the teachers' features (Ahn et al., 2019)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.losses.spatial import as_map, same_space
from crossdistill.losses.task import EVERY_TASK
from crossdistill.losses.vid import gaussian_nll, log_scale_of
from crossdistill.method import ActsOn, DataSpec, Method, Progress, Step, module_key, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pair, Pairs, is_map
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.nets.regressor import ChannelRegressor
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class VID(FeatureConfig):
    """`CE + Σ over stages of -log N(teacher; regressed student, variance by channel)`.

    By default over all spatial taps, or the last taps if a network has none.
    """

    acts_on: ClassVar[ActsOn | None] = "maps"
    name: Literal["vid"] = "vid"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    variance: float = Field(5.0, gt=1e-5)
    """Initial variance, in the squared unit of the teacher's feature."""
    train_variance: bool = True
    """Whether the variances are trained; those of the released code are constant, since no optimizer has them."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a regressor for every pair, with a variance for every channel."""
        spatial = all(any(map(is_map, spec.features.values())) for spec in (student, *teachers.values()))
        pairs = self.pairs("maps" if spatial else "vector", student, teachers, flat=True)
        return _VID(self, pairs, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _VID(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK

    def __init__(self, config: VID, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction
        self.stages = nn.ModuleDict(
            {
                module_key(f"{name}:{stage}"): _Stage(pair, config)
                for name, of_teacher in pairs.items()
                for stage, pair in enumerate(of_teacher)
            }
        )

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            if features.empty():
                terms[f"vid/{features.name}"] = features.empty_term()
                continue
            stages = [
                self.stages[module_key(f"{features.name}:{stage}")](mine, theirs)
                for stage, (mine, theirs) in enumerate(features.pairs())
            ]
            terms[f"vid/{features.name}"] = features.term(torch.stack(stages).sum(0))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)


class _Stage(nn.Module):
    """A Gaussian model of one teacher feature given one student feature: mean and variance."""

    def __init__(self, pair: Pair, config: VID) -> None:
        super().__init__()
        self.regress = ChannelRegressor(pair.mine[0], pair.theirs[0])
        self.train_variance = config.train_variance
        self.log_scale = nn.Parameter(torch.full((pair.theirs[0],), log_scale_of(config.variance)))

    def forward(self, feature: Tensor, wanted: Tensor) -> Tensor:
        feature, wanted = same_space(as_map(feature), as_map(wanted))
        scale = self.log_scale if self.train_variance else self.log_scale.detach()
        return gaussian_nll(self.regress(feature), wanted, scale)
