"""The base of weightings that need a separate gradient for each group."""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.weighting.weighting import Turn, Weighting


class Separate(Weighting):
    """Base class: computes each group's gradient, holds them during micro-batches, and writes the combined one."""

    needs_separate: ClassVar[bool] = True

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__(groups)
        self._held: Tensor | None = None
        self._used: set[int] = set()

    @abc.abstractmethod
    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The step's gradient from those of the groups (scaled) and their losses (not scaled)."""

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One backward pass per group; all gradients and losses are one tensor, so ranks exchange one sum."""
        rows = []
        for index, total in enumerate(totals.values()):
            gradients: Sequence[Tensor | None] = [None] * len(parameters)
            if total.requires_grad:
                more = index + 1 < len(totals)
                gradients = torch.autograd.grad(turn.scale(total), parameters, retain_graph=more, allow_unused=True)
            self._used.update(place for place, gradient in enumerate(gradients) if gradient is not None)
            flat = [
                (torch.zeros_like(weight) if gradient is None else gradient).flatten()
                for gradient, weight in zip(gradients, parameters, strict=True)
            ]
            rows.append(torch.cat([*flat, total.detach().to(flat[0]).view(1)]))
        held = torch.stack(rows)
        self._held = held if self._held is None else self._held + held
        if turn.last:
            self._lay_down(parameters, turn)

    def _lay_down(self, parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """Combine the held gradients and add the result to `.grad`, which stays None for unused parameters."""
        assert self._held is not None
        whole = self._held if turn.reduce is None else turn.reduce(self._held)
        combined = self.combine(whole[:, :-1], whole[:, -1], turn)
        pieces = torch.split(combined, [weight.numel() for weight in parameters])
        for place, (weight, piece) in enumerate(zip(parameters, pieces, strict=True)):
            # With several ranks, another rank may have used it, and all must make the same step.
            if place in self._used or turn.reduce is not None:
                gradient = piece.view_as(weight).to(weight.dtype)
                weight.grad = gradient.clone() if weight.grad is None else weight.grad + gradient
        self._held = None
        self._used = set()
