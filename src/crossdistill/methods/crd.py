"""Contrastive representation distillation with a memory bank (Tian et al., ICLR 2020)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError
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
from crossdistill.nets.contrast import Draw, memory_contrast
from crossdistill.nets.memory import Memory
from crossdistill.nets.projector import UnitEmbedding
from crossdistill.outputs import OutputSpec, Signal, picked
from crossdistill.teacher import Teacher


class CRD(FeatureConfig):
    """`(1 - a) · CE + a · contrast`: a row's two embeddings against stored embeddings of rows of other classes.

    A trained linear map on each side gives unit vectors; its input is by default the embedding or the last tap. Rows
    whose label is hidden form one additional class. The defaults are MST-Distill's; mdistiller uses
    `negatives=16384` and `fixed=(1, 0.8)`.
    """

    added: ClassVar[frozenset[str]] = frozenset({"draw"})
    acts_on: ClassVar[ActsOn | None] = "last"
    name: Literal["crd"] = "crd"
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss at the start; the weight of the task is 1 - alpha."""
    decay: float = Field(0.5, gt=0, le=1)
    decay_every: int | None = Field(30, ge=1)
    """Epochs between two decays; None keeps `alpha` constant."""
    fixed: tuple[float, float] | None = None
    """Constant weights of task and distillation instead of the decay."""
    width: int = Field(128, ge=1)
    maps: VectorOf = "mean"
    """Conversion of a map to a vector: each channel's mean, or all positions after 2x2 max-pooling."""
    negatives: int = Field(4096, ge=1)
    """Negatives per row; drawn with repetition if fewer rows of other classes exist."""
    repeat: bool = False
    """Always draw with repetition, which is faster for large data sets."""
    draw: Draw = "each"
    """Negatives are drawn for each row by itself, as published, or once for all rows of a step ("shared"), which makes
    one product of matrices of the contrast; a row's draw has the same distribution."""
    positive: Literal["own", "class"] = "own"
    """The positive of a row: the row itself, or any row of its class."""
    temperature: float = Field(0.07, gt=0)
    """Dimensionless."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Momentum of the updates of the memory (dimensionless)."""
    normaliser: Literal["first", "each"] = "first"
    """Estimate the constant Z on the first batch only (the released code), or on each batch."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a memory and two linear maps for each teacher.

        Raises:
            ApplicabilityError: all training rows are of one class, so that no negatives exist.
        """
        return _CRD(self, self.pairs("vector", student, teachers), data)

    def loss_weights(self) -> AlphaDecay:
        """The schedule of the weights of the task and the distillation loss."""
        return AlphaDecay(self.alpha, self.decay, self.decay_every, self.fixed)


class _CRD(Method):
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: CRD, pairs: Pairs, data: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = data.labelled_fraction
        labels = torch.full((data.rows,), MISSING_TARGET) if data.targets is None else data.targets.cpu()
        if labels.ndim > 1:
            raise ApplicabilityError("crd draws negatives by class, and here a row has many labels (dense targets)")
        self.mine, self.theirs, self.memories = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, (*_, last) in pairs.items():
            key = module_key(name)
            self.mine[key] = UnitEmbedding(vector_size(last.mine, config.maps), config.width)
            self.theirs[key] = UnitEmbedding(vector_size(last.theirs, config.maps), config.width)
            seed = int(torch.randint(2**62, ()))
            self.memories[key] = Memory(labels, config.width, config.momentum, repeat=config.repeat, seed=seed)
        ids = torch.arange(data.rows) if data.ids is None else data.ids.cpu()
        row_of = torch.zeros(int(ids.max()) + 1, dtype=torch.int64).index_copy(0, ids, torch.arange(len(ids)))
        self.row_of: Tensor
        self.register_buffer("row_of", row_of, persistent=False)

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        stash: dict[str, Tensor] = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            name, key = features.name, module_key(features.name)
            index = self.row_of[picked(batch.ids, features.rows)]
            mine, theirs = (vector(side[-1], self.config.maps) for side in (features.student, features.teacher))
            sides = self.mine[key](mine), self.theirs[key](theirs)
            rows, normaliser = self._contrast(name, index, sides, progress)
            terms[f"crd/{name}"] = features.term(rows)
            moved = {"index": index, "student": sides[0].detach(), "teacher": sides[1].detach()}
            stash |= {f"{name}/{side}": progress.gather(value) for side, value in moved.items()}
            stash[f"{name}/normaliser"] = normaliser
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms, stash)

    def after_step(self, batch: Batch, step: Step) -> None:
        for name in self.pairs:
            memory = self._memory(name)
            memory.move(*(step.stash[f"{name}/{key}"] for key in ("index", "student", "teacher")))
            memory.normaliser.copy_(step.stash[f"{name}/normaliser"])

    def _contrast(
        self, name: str, index: Tensor, sides: tuple[Tensor, Tensor], progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """The loss of each row in both directions, and the updated log Z."""
        config = self.config
        return memory_contrast(
            self._memory(name),
            index,
            sides,
            config.negatives,
            config.temperature,
            progress.epoch * progress.steps + progress.step,
            progress.gather,
            draw=config.draw,
            by_class=config.positive == "class",
            keep_normaliser=config.normaliser == "first",
        )

    def _memory(self, name: str) -> Memory:
        memory = self.memories[module_key(name)]
        assert isinstance(memory, Memory)
        return memory
