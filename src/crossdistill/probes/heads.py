"""Small heads on pooled features, for all seeds and learning rates at once: each trains as if it were alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.runtime.hashing import derived_seed

HeadKind = Literal["linear", "mlp"]
PROJECTION, HIDDEN, DROPOUT = 256, 512, 0.2
"""Width of SUPERB's projection (Yang et al., Interspeech 2021), and MARBLE's hidden layer and dropout."""
RATES = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)
"""Learning rates of MARBLE's grid (Yuan et al., NeurIPS 2023)."""
EPOCHS, BATCH, PATIENCE, HALVED_AFTER = 100, 64, 10, 3
"""Longest training, rows of a step, epochs without a better validation until the end, and until half the rate."""
BETAS, EPSILON = (0.9, 0.999), 1e-8

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of each head (S, R) from outputs (S, R, B, O) and targets (S, B, C)."""
Score = Callable[[Tensor, Tensor], float]
"""A score that rises, of outputs (N, O) and targets (N, C)."""


@dataclass(frozen=True, slots=True)
class Standard:
    """Means and deviations of features over the training rows of each seed: (S, 1, L, D)."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Float[Tensor, "S N L D"]) -> "Standard":
        """Of the training rows; a constant feature becomes 0."""
        deviation = rows.std(1, correction=0, keepdim=True)
        return cls(rows.mean(1, keepdim=True), torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))

    def apply(self, rows: Float[Tensor, "S_or_1 N L D"]) -> Float[Tensor, "S N L D"]:
        """The standardised rows, those of one set for every seed."""
        return (rows - self.mean) * self.scale


class Heads:
    """S × R heads of one kind, for S seeds and R learning rates; heads of one seed begin equally.

    `linear` is SUPERB's: a projection of each frame, the mean over frames, a linear layer. Projection and mean commute,
    so that it is exact on the mean of the frames. `mlp` is MARBLE's: 512 units, ReLU, dropout 0.2. Layers are summed
    with softmax weights, which begin equal.
    """

    def __init__(self, kind: HeadKind, values: Sequence[Tensor]) -> None:
        """`values` are the weights of layers (S, R, L), then weights and biases of two layers, each with (S, R)."""
        self.kind, self.values = kind, list(values)

    @classmethod
    def drawn(cls, kind: HeadKind, layers: int, width: int, outputs: int, seeds: Sequence[int], rates: int) -> "Heads":
        """Heads with first weights as those of `nn.Linear`, from the seeds."""
        hidden = PROJECTION if kind == "linear" else HIDDEN
        shapes = [(layers,), (width, hidden), (hidden,), (hidden, outputs), (outputs,)]
        bounds = [0.0, *[1 / math.sqrt(width)] * 2, *[1 / math.sqrt(hidden)] * 2]
        drawn: list[list[Tensor]] = []
        for seed in seeds:
            source = torch.Generator().manual_seed(derived_seed("probe head", seed))
            drawn.append([(2 * torch.rand(s, generator=source) - 1) * b for s, b in zip(shapes, bounds, strict=True)])
        stacked = [torch.stack(same)[:, None] for same in zip(*drawn, strict=True)]
        return cls(kind, [value.repeat(1, rates, *[1] * (value.ndim - 2)) for value in stacked])

    def to(self, device: torch.device) -> "Heads":
        """The same heads on another device."""
        self.values = [value.to(device) for value in self.values]
        return self

    def __call__(self, rows: Float[Tensor, "S B L D"], dropped: Tensor | None = None) -> Float[Tensor, "S R B O"]:
        """Outputs of every head; `dropped` (S, 1, B, H) are the hidden units that dropout keeps, scaled."""
        layers, first, bias, second, offset = self.values
        mixed = torch.einsum("sbld,srl->srbd", rows, layers.softmax(-1))
        hidden = torch.matmul(mixed, first) + bias[:, :, None]
        if self.kind == "mlp":
            hidden = hidden.relu()
            hidden = hidden if dropped is None else hidden * dropped
        return torch.matmul(hidden, second) + offset[:, :, None]

    def of_rates(self, best: Sequence[int]) -> "Heads":
        """One head for each seed: that of its best learning rate."""
        places = torch.tensor(best, device=self.values[0].device)
        seeds = torch.arange(len(places), device=places.device)
        return Heads(self.kind, [value[seeds, places][:, None] for value in self.values])


@dataclass(frozen=True, slots=True)
class FittedHeads:
    """One head for each seed, with the learning rate that the validation chose and the weights of the layers (S, L)."""

    heads: Heads
    standard: Standard
    rates: tuple[float, ...]
    layers: Tensor

    @torch.no_grad()
    def outputs(self, features: Float[Tensor, "N L D"]) -> Float[Tensor, "S N O"]:
        """Outputs of each seed's head, on the CPU."""
        device = self.heads.values[0].device
        parts = [self.heads(self.standard.apply(part.to(device)[None]))[:, 0].cpu() for part in features.split(512)]
        return torch.cat(parts, 1)


class _Adam:
    """Adam (Kingma and Ba, 2015) with a learning rate for each head (S, R), which `torch.optim.Adam` has not."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
        self.steps = 0

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        self.steps += 1
        (first, second), count = BETAS, self.steps
        for value, gradient, (mean, square) in zip(values, gradients, self.moments, strict=True):
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            change = (mean / (1 - first**count)) / ((square / (1 - second**count)).sqrt() + EPSILON)
            value.sub_(rates.reshape(*rates.shape, *[1] * (value.ndim - 2)) * change)


class _Best:
    """The best state of each head on the validation, and which heads still train."""

    def __init__(self, heads: Heads, rates: Tensor) -> None:
        self.score = torch.full(rates.shape, -math.inf, dtype=torch.float64)
        self.loss = torch.full(rates.shape, math.inf, dtype=torch.float64)
        self.waited = torch.zeros(rates.shape, dtype=torch.int64)
        self.values = [value.clone() for value in heads.values]

    def see(self, heads: Heads, score: Tensor, loss: Tensor) -> None:
        """Keep the state of the heads that became better: by score, of equal ones by loss."""
        alive = self.waited < PATIENCE
        better = alive & ((score > self.score) | ((score == self.score) & (loss < self.loss)))
        self.score, self.loss = torch.where(better, score, self.score), torch.where(better, loss, self.loss)
        self.waited = torch.where(better, 0, self.waited + 1)
        for kept, value in zip(self.values, heads.values, strict=True):
            mark = better.to(value.device).reshape(*better.shape, *[1] * (value.ndim - 2))
            kept.copy_(torch.where(mark, value, kept))


def fit_heads(
    kind: HeadKind,
    features: Float[Tensor, "N L D"],
    targets: Tensor,
    train: Sequence[Sequence[int]],
    validation: Sequence[int],
    outputs: int,
    loss: Loss,
    score: Score,
    *,
    seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    device: torch.device | str = "cpu",
) -> FittedHeads:
    """Train a head for each seed and learning rate, and keep for each seed the rate with the best validation.

    `targets` are (N, C); `train` has the training rows of each seed, equally many. Adam, 64 rows a step; a rate is
    halved after 3 epochs without a better validation, a head ends after 10. Features are standardised over the training
    rows of the seed. No other rows than those of `train` and `validation` are read.
    """
    where = torch.device(device)
    rows = torch.tensor([list(subset) for subset in train])
    held, wanted = features[list(validation)].to(where), targets[list(validation)]
    values, aims = features[rows].to(where), targets[rows].to(where)
    standard = Standard.of(values)
    values = standard.apply(values)
    held = standard.apply(held[None].expand(len(rows), *held.shape)) if len(held) * len(rows) < 20_000 else held
    heads = Heads.drawn(kind, features.shape[1], features.shape[2], outputs, seeds, len(rates)).to(where)
    rate = torch.tensor([list(rates)] * len(rows), device=where)
    best, adam = _Best(heads, rate), _Adam(heads.values)
    sources = [torch.Generator().manual_seed(derived_seed("probe order", seed)) for seed in seeds]
    for _ in range(epochs):
        _epoch(heads, adam, values, aims, rate, loss, sources)
        best.see(heads, *_validated(heads, standard, held, wanted, loss, score))
        if bool((best.waited >= PATIENCE).all()):
            break
        halved = ((best.waited > 0) & (best.waited % HALVED_AFTER == 0)).to(where)
        rate = torch.where(halved, rate / 2, rate)
    heads.values = best.values
    chosen = [
        max(range(len(rates)), key=lambda r: (float(best.score[s, r]), -float(best.loss[s, r])))
        for s in range(len(rows))
    ]
    kept = heads.of_rates(chosen)
    return FittedHeads(kept, standard, tuple(rates[place] for place in chosen), kept.values[0][:, 0].softmax(-1).cpu())


def _epoch(
    heads: Heads,
    adam: _Adam,
    values: Tensor,
    aims: Tensor,
    rate: Tensor,
    loss: Loss,
    sources: Sequence[torch.Generator],
) -> None:
    """One pass over the training rows, in an order of each seed's own."""
    count = values.shape[1]
    orders = torch.stack([torch.randperm(count, generator=source) for source in sources]).to(values.device)
    seeds = torch.arange(len(sources), device=values.device)[:, None]
    for places in orders.split(BATCH, 1):
        dropped = _dropout(sources, places.shape[1]).to(values.device) if heads.kind == "mlp" else None
        free = [value.requires_grad_() for value in heads.values]
        total = loss(heads(values[seeds, places], dropped), aims[seeds, places]).sum()
        gradients = torch.autograd.grad(total, free)
        heads.values = [value.detach() for value in free]
        adam.step(heads.values, gradients, rate)


def _dropout(sources: Sequence[torch.Generator], rows: int) -> Tensor:
    """The kept hidden units of each row, scaled; those of a seed are the same for all learning rates."""
    drawn = torch.stack([torch.rand(1, rows, HIDDEN, generator=source) for source in sources])
    return (drawn >= DROPOUT).float() / (1 - DROPOUT)


@torch.no_grad()
def _validated(
    heads: Heads, standard: Standard, held: Tensor, wanted: Tensor, loss: Loss, score: Score
) -> tuple[Tensor, Tensor]:
    """Score and loss (S, R) of every head on the validation rows."""
    parts = held.split(512, 1) if held.ndim == 4 else [standard.apply(part[None]) for part in held.split(512)]
    outputs = torch.cat([heads(part) for part in parts], 2)
    targets = wanted.to(outputs.device)[None].expand(len(outputs), *wanted.shape)
    flat = outputs.cpu().flatten(0, 1)
    scores = torch.tensor([score(head, wanted) for head in flat], dtype=torch.float64)
    return scores.reshape(outputs.shape[:2]), loss(outputs, targets).double().cpu()


def slot_loss(sizes: Sequence[int]) -> Loss:
    """Cross-entropy, summed over slots of `sizes` classes each."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros(outputs.shape[:2], device=outputs.device)
        for slot, logits in enumerate(outputs.split(list(sizes), -1)):
            wanted = targets[:, None, :, slot].expand(*outputs.shape[:3])
            total = total + functional.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").reshape(
                wanted.shape
            ).mean(-1)
        return total

    return loss


def square_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over rows and columns."""
    return (outputs - targets[:, None]).square().mean((-1, -2))


def slot_classes(sizes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The function from outputs (N, O) to the class of each slot (N, S)."""
    return lambda outputs: torch.stack([logits.argmax(-1) for logits in outputs.split(list(sizes), -1)], -1)
