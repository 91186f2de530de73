"""The interface of weightings, which turn the terms of a step into gradients, group by group.

A weighting works on *groups*: terms of one group are one task and are summed first. Term values are already reduced
and multiplied by the method's weights, so that the parts of all ranks and micro-batches sum to the whole.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from crossdistill.errors import SettingError

Change = Callable[[Tensor], Tensor]
"""A function of a tensor: a loss scaler's `scale`, or a sum over ranks."""


def same(value: Tensor) -> Tensor:
    """The tensor itself."""
    return value


@dataclass(frozen=True, slots=True)
class Turn:
    """The arguments of `Weighting.backward` about the step; they are explained there."""

    scale: Change
    reduce: Change | None
    step: int
    last: bool
    fraction: float


def one_pass(losses: list[Tensor], turn: Turn) -> None:
    """One backward pass over the sum of these losses."""
    turn.scale(torch.stack(losses).sum()).backward()


class Weighting(nn.Module, abc.ABC):
    """Turns the terms of a step into `.grad`.

    `groups` names the groups of every step; it may be empty for a weighting without state per group. The runner calls
    `backward` once for every micro-batch, steps the optimizer, then calls `after_step`; after the last step of an
    epoch it calls `after_epoch`. Learned values are in the state dict.
    """

    needs_separate: ClassVar[bool] = False
    """Whether each group needs a separate gradient: called under `no_sync`, and `reduce` sums over ranks."""

    remembers: ClassVar[bool] = True
    """Whether it has state for each group, so that the groups must be given when it is built."""

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__()
        if (self.remembers and not groups) or len(set(groups)) != len(groups):
            raise SettingError(f"{type(self).__name__} needs the distinct names of the groups of terms, got {groups!r}")
        self.groups = tuple(groups)

    def backward(
        self,
        terms: Mapping[str, Float[Tensor, ""]],
        groups: Mapping[str, str],
        parameters: Sequence[nn.Parameter],
        *,
        scale: Change = same,
        reduce: Change | None = None,
        step: int = 0,
        last: bool = True,
        fraction: float = 1.0,
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Add the combined gradient to `.grad`; returns each weighted term, detached, without a host sync.

        `groups` maps each term to its group. `parameters` are the trained ones; a weighting that `needs_separate`
        changes only these, the others all parameters in the graph. `scale` multiplies a loss by a constant (mixed
        precision, ranks) and stays in the gradient. `reduce` sums a tensor over ranks: one call for all groups,
        after which `.grad` is the same everywhere and needs no all-reduce. `step` is the optimizer step, equal on
        all ranks. `last`: this micro-batch ends the step; separate gradients are held until then.
        `fraction` is this call's part of the step, 1 / (ranks · micro-batches), for addends other than sums of rows.

        Raises:
            SettingError: a term has no group, or the groups differ from those of this weighting.
        """
        totals = self._totals(terms, groups)
        weights = self.weights()
        plain = {name: value.detach() for name, value in terms.items()}
        weighted = {name: value * weights.get(groups[name], 1.0) for name, value in plain.items()}
        self.backprop(totals, parameters, Turn(scale, reduce, step, last, fraction))
        return weighted

    @abc.abstractmethod
    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """Compute `.grad` from each group's total, in the order of `groups`; each subclass defines this."""

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The current factor of each group, detached; groups that are not listed have 1."""
        return {}

    def after_step(self) -> None:
        """Update state measured during steps; called after the optimizer's step."""

    def after_epoch(self, reduce: Change | None = None) -> None:
        """Update state measured over epochs; `reduce` sums a tensor over ranks."""

    def _totals(self, terms: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, Tensor]:
        """The sum of each group's terms, in the order of `self.groups`, or of first appearance if that is empty."""
        ungrouped = sorted(set(terms) - set(groups))
        present = dict.fromkeys(groups[name] for name in terms if name in groups)
        if ungrouped or (self.groups and set(present) != set(self.groups)):
            raise SettingError(
                f"weighting {type(self).__name__} was built for the groups {sorted(self.groups)}; the step gave "
                f"{sorted(present)}" + (f", and terms without a group: {ungrouped}" if ungrouped else "")
            )
        totals: dict[str, Tensor] = {}
        for name, value in terms.items():
            group = groups[name]
            totals[group] = totals[group] + value if group in totals else value
        return {group: totals[group] for group in self.groups or present}


class WeightingConfig(BaseModel):
    """Frozen settings of one weighting; `name` is its name in recipes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    makes: ClassVar[type[Weighting]]
    plain_sgd: ClassVar[bool] = False
    """Whether it includes momentum and weight decay, so that the optimizer must have neither."""
    name: str

    def build(self, groups: Sequence[str]) -> Weighting:
        """Build the weighting for these groups; all settings except `name` are arguments of its class."""
        return self.makes(groups, **self.model_dump(exclude={"name"}))


class Sum(Weighting):
    """The plain sum of the method's weighted terms, with one backward pass."""

    remembers: ClassVar[bool] = False

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One backward pass over the sum."""
        one_pass(list(totals.values()), turn)


class SumConfig(WeightingConfig):
    """Plain sum."""

    makes: ClassVar[type[Weighting]] = Sum
    name: Literal["sum"] = "sum"
