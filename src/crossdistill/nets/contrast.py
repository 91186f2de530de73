"""Comparisons of a student's unit vectors with those of a teacher: memory, queue, batch, or the own row alone."""

import abc
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.contrast import contrast_logits, contrast_nce, info_nce, shared_contrast_logits
from crossdistill.nets.memory import Memory, groups_of

Kind = Literal["crd", "mse", "cosine", "infonce", "queue"]
Gather = Callable[[Tensor], Tensor]
"""The rows of all ranks, with gradient for those of this rank."""
Draw = Literal["each", "shared"]
"""Negatives of a memory are drawn for each row by itself, as published, or once for the rows of a step."""


def memory_contrast(
    memory: Memory,
    index: Int64[Tensor, " B"],
    sides: tuple[Tensor, Tensor],
    negatives: int,
    temperature: float,
    step: int,
    gather: Gather,
    *,
    draw: Draw = "each",
    by_class: bool = False,
    keep_normaliser: bool = True,
) -> tuple[Float[Tensor, " B"], Float[Tensor, "2"]]:
    """The loss of each row in both directions, and log Z of both: Tian et al., ICLR 2020.

    `sides` are unit vectors (B, D) of the student and of the teacher; `index` are their rows in the memory. With
    `keep_normaliser` the memory's log Z is used where it has been measured.
    """
    banks = memory.teacher, memory.student
    pairs = list(zip(sides, banks, strict=True))
    if draw == "each":
        candidates = memory.candidates(index, negatives, step, by_class=by_class)
        logits = [contrast_logits(side, bank, candidates, temperature) for side, bank in pairs]
        negatives = candidates.shape[1] - 1
    else:
        drawn, kept, negatives = memory.shared(index, negatives, step)
        positive = memory.positives(index, step) if by_class else index
        logits = [shared_contrast_logits(side, bank, positive, drawn, kept, temperature) for side, bank in pairs]
    normaliser = torch.stack([memory.measured(side.detach(), gather, negatives + 1) for side in logits])
    if keep_normaliser:
        normaliser = torch.where(memory.normaliser.isinf(), normaliser, memory.normaliser)
    rows = len(memory.student)
    losses = [
        contrast_nce(side, z, rows, negatives=negatives) for side, z in zip(logits, normaliser.unbind(), strict=True)
    ]
    return torch.stack(losses).sum(0), normaliser


class Comparison(nn.Module, abc.ABC):
    """The loss of each row between unit vectors of the student and of the teacher; a call changes no state.

    `move` updates the state after a step, from the tensors that the call returned.
    """

    @abc.abstractmethod
    def forward(
        self,
        index: Int64[Tensor, " B"],
        mine: Float[Tensor, "B D"],
        theirs: Float[Tensor, "B D"],
        step: int,
        gather: Gather,
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """The losses (B,) of the rows `index` of the training data, and what `move` needs."""

    def move(self, stash: Mapping[str, Tensor]) -> None:
        """Update the state."""


class RowByRow(Comparison):
    """The own row alone: squared error (mean over the D numbers, times D) or 1 - cosine."""

    def __init__(self, kind: Literal["mse", "cosine"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(
        self, index: Tensor, mine: Tensor, theirs: Tensor, step: int, gather: Gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Comparison`."""
        if self.kind == "mse":
            return (mine - theirs).square().sum(1), {}
        return 1 - functional.cosine_similarity(mine, theirs, dim=1), {}


class InMemory(Comparison):
    """CRD: noise-contrastive estimation against stored vectors of all training rows."""

    def __init__(
        self, labels: Tensor, width: int, momentum: float, negatives: int, temperature: float, draw: Draw, seed: int
    ) -> None:
        """See `Memory`, which raises an ApplicabilityError for rows of a single class."""
        super().__init__()
        self.memory = Memory(labels, width, momentum, seed=seed)
        self.negatives, self.temperature, self.draw = negatives, temperature, draw

    def forward(
        self, index: Tensor, mine: Tensor, theirs: Tensor, step: int, gather: Gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Comparison`."""
        rows, normaliser = memory_contrast(
            self.memory, index, (mine, theirs), self.negatives, self.temperature, step, gather, draw=self.draw
        )
        moved = {"index": index, "student": mine.detach(), "teacher": theirs.detach()}
        return rows, {**{name: gather(value) for name, value in moved.items()}, "normaliser": normaliser}

    def move(self, stash: Mapping[str, Tensor]) -> None:
        """See `Comparison`."""
        self.memory.move(stash["index"], stash["student"], stash["teacher"])
        self.memory.normaliser.copy_(stash["normaliser"])


class InBatch(Comparison):
    """InfoNCE in both directions among the rows of a step, of all ranks; rows of one class are no negatives."""

    group: Tensor

    def __init__(self, labels: Tensor, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("group", groups_of(labels), persistent=False)

    def forward(
        self, index: Tensor, mine: Tensor, theirs: Tensor, step: int, gather: Gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Comparison`."""
        everyone = gather(index)
        positive = index.unsqueeze(1) == everyone
        kept = self.group[index].unsqueeze(1) != self.group[everyone]
        directions = ((mine, gather(theirs)), (theirs, gather(mine)))
        losses = [info_nce(anchors @ others.T / self.temperature, positive, kept) for anchors, others in directions]
        return torch.stack(losses).sum(0), {}


class InQueue(Comparison):
    """InfoNCE of the student's vectors against a queue of the teacher's last ones: He et al., CVPR 2020 (MoCo).

    It begins with random unit vectors, which are negatives of all rows.
    """

    group: Tensor
    vectors: Tensor
    index: Tensor
    place: Tensor

    def __init__(self, labels: Tensor, width: int, length: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("group", groups_of(labels), persistent=False)
        self.register_buffer("vectors", functional.normalize(torch.randn(length, width), dim=1))
        self.register_buffer("index", torch.full((length,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(
        self, index: Tensor, mine: Tensor, theirs: Tensor, step: int, gather: Gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Comparison`."""
        own = (mine * theirs).sum(1, keepdim=True)
        logits = torch.cat([own, mine @ self.vectors.T], dim=1) / self.temperature
        other = self.group[index].unsqueeze(1) != self.group[self.index.clamp(min=0)]
        kept = torch.cat([torch.zeros_like(other[:, :1]), other | (self.index < 0)], dim=1)
        positive = torch.zeros_like(kept).index_fill(1, torch.zeros(1, dtype=torch.int64, device=kept.device), True)
        return info_nce(logits, positive, kept), {"index": gather(index), "teacher": gather(theirs.detach())}

    def move(self, stash: Mapping[str, Tensor]) -> None:
        """See `Comparison`."""
        # By row, so that the order does not depend on how rows are shared among ranks.
        order = stash["index"].argsort()[-len(self.index) :]
        index, vectors = stash["index"][order], stash["teacher"][order]
        places = (self.place + torch.arange(len(index), device=index.device)) % len(self.index)
        self.index.index_copy_(0, places, index)
        self.vectors.index_copy_(0, places, vectors)
        self.place.copy_((self.place + len(index)) % len(self.index))


def comparison(
    kind: Kind, labels: Int64[Tensor, " N"], width: int, negatives: int, temperature: float, momentum: float, draw: Draw
) -> Comparison:
    """The comparison of this name for the N training rows; a memory's draws depend on torch's random state."""
    if kind == "mse" or kind == "cosine":
        return RowByRow(kind)
    if kind == "infonce":
        return InBatch(labels, temperature)
    if kind == "queue":
        return InQueue(labels, width, negatives, temperature)
    return InMemory(labels, width, momentum, negatives, temperature, draw, int(torch.randint(2**62, ())))
