"""ReviewKD: deep features of the student are fused with shallow ones and compared (Chen et al., CVPR 2021)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.losses.review import hierarchical_context
from crossdistill.losses.spatial import as_map, as_vector
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import Activation, ActsOn, DataSpec, Method, Progress, Step, module_key, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs, Shape
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.nets.review import Review
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher


class ReviewKD(FeatureConfig):
    """`CE + 5 · Σ over stages of the fused features' loss at several sizes`, after a warm-up of 20 epochs.

    By default over all spatial taps, plus a final stage: the mean of the last tap over positions. Sizes and channels
    are determined automatically.
    """

    acts_on: ClassVar[ActsOn | None] = "maps"
    activation: ClassVar[Activation] = "before"
    name: Literal["reviewkd"] = "reviewkd"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(5.0, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(20, ge=0)
    """Length of the warm-up, in epochs."""
    pooled: bool = True
    """Whether to add the final pooled stage."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Pairs the spatial features, the deepest with the deepest."""
        return _ReviewKD(self, self.pairs("maps", student, teachers), data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _ReviewKD(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    # The fusion blocks normalise over the batch.
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: ReviewKD, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction
        self.reviews = nn.ModuleDict()
        for name, of_teacher in pairs.items():
            mine, theirs = ([_stage(getattr(pair, side)) for pair in of_teacher] for side in ("mine", "theirs"))
            if config.pooled:
                mine, theirs = [*mine, (mine[-1][0], 1, 1)], [*theirs, (theirs[-1][0], 1, 1)]
            self.reviews[module_key(name)] = Review(mine, theirs)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            fused = self.reviews[module_key(features.name)](self._stages(features.student), progress.gather)
            theirs = self._stages(features.teacher)
            stages = [hierarchical_context(*pair) for pair in zip(fused, theirs, strict=True)]
            terms[f"reviewkd/{features.name}"] = features.term(torch.stack(stages).sum(0))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)

    def _stages(self, features: Iterable[Tensor]) -> list[Tensor]:
        maps = [as_map(feature) for feature in features]
        return [*maps, as_map(as_vector(maps[-1]))] if self.config.pooled else maps


def _stage(shape: Shape) -> Shape:
    return tuple(as_map(torch.empty(1, *shape, device="meta")).shape[1:])
