"""ReviewKD: the student's deep features review shallow ones, then meet the teachers' (Chen et al., CVPR 2021)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.losses.review import hierarchical_context
from crossdistill.losses.spatial import as_map, as_vector
from crossdistill.method import Activation, ActsOn, DataSpec, Method, Progress, module_key
from crossdistill.methods.feature_method import FeatureConfig, FeatureMethod, Pair, Shape
from crossdistill.methods.loss_weights import Weighted
from crossdistill.nets.review import Review
from crossdistill.outputs import OutputSpec


class ReviewKD(Weighted, FeatureConfig):
    """`CE + 5 · Σ over stages of the fused features' loss at several sizes`, after a warm-up of 20 epochs.

    By default over all spatial taps, and behind them a stage of the last one's mean over positions. Sizes and channels
    are found by themselves.
    """

    acts_on: ClassVar[ActsOn | None] = "maps"
    activation: ClassVar[Activation] = "before"
    name: Literal["reviewkd"] = "reviewkd"
    weight: float = Field(5.0, ge=0)
    warm_up: int = Field(20, ge=0)
    pooled: bool = True
    """Whether there is that last stage."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest."""
        return _ReviewKD(self, self.pairs("maps", student, teachers), data.labelled_fraction)


class _ReviewKD(FeatureMethod):
    # Its fusions normalise over rows.
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: ReviewKD, pairs: Mapping[str, Sequence[Pair]], labelled_fraction: float) -> None:
        super().__init__(config, pairs, labelled_fraction)
        self.reviews = nn.ModuleDict()
        for name, found in pairs.items():
            mine, theirs = ([_stage(getattr(pair, side)) for pair in found] for side in ("mine", "theirs"))
            if config.pooled:
                mine, theirs = [*mine, (mine[-1][0], 1, 1)], [*theirs, (theirs[-1][0], 1, 1)]
            self.reviews[module_key(name)] = Review(mine, theirs)

    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        fused = self.reviews[module_key(teacher)](self._stages(mine), progress.gather)
        stages = [hierarchical_context(*pair) for pair in zip(fused, self._stages(theirs), strict=True)]
        return {"reviewkd": torch.stack(stages).sum(0)}

    def _stages(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [as_map(feature) for feature in features]
        return [*maps, as_map(as_vector(maps[-1]))] if self.config.pooled else maps


def _stage(shape: Shape) -> Shape:
    return tuple(as_map(torch.empty(1, *shape, device="meta")).shape[1:])
