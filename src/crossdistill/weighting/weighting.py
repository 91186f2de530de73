"""What every weighting is: from the terms of a step to gradients, group by group.

A weighting works on *groups*: terms of one group are one task and are summed first. Term values come in reduced
and multiplied by the method's own weights, so that parts of all ranks and micro-batches add up to the whole.
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
"""Tensor to tensor: a loss scaler's `scale`, or a sum over ranks."""


def same(value: Tensor) -> Tensor:
    """The tensor itself."""
    return value


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call of `Weighting.backward` says of the step that it belongs to; the words are explained there."""

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

    `groups` names the groups that every step must give; a weighting that remembers nothing of them takes any
    when none are named. The runner calls `backward` once for every micro-batch, steps the optimizer, then calls
    `after_step`; after the last step of an epoch it calls `after_epoch`. What is learned is in the state dict.
    """

    needs_separate: ClassVar[bool] = False
    """Each group needs its own gradient: the runner calls under `no_sync`, and `reduce` sums over ranks."""

    remembers: ClassVar[bool] = True
    """Keeps something for each group, so it must know them beforehand."""

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
        """Add the combined gradient to `.grad`; give each term as it was weighted, detached, without a host sync.

        `groups` maps each term to its group. `parameters` are what trains; a weighting that `needs_separate`
        touches only these, the others whatever the graph reaches. `scale` multiplies a loss by a constant (mixed
        precision, ranks) and stays in the gradient. `reduce` sums a tensor over ranks: one call for all groups,
        after which `.grad` is the same everywhere and needs no all-reduce. `step` is the optimizer step, equal on
        all ranks. `last` says that this micro-batch ends the step: separate gradients are held until then.
        `fraction` is this call's part of the step, 1 / (ranks · micro-batches), for addends that are no sum over rows.

        Raises:
            SettingError: a term without a group, or groups other than this weighting was built for.
        """
        totals = self._totals(terms, groups)
        weights = self.weights()
        plain = {name: value.detach() for name, value in terms.items()}
        weighted = {name: value * weights.get(groups[name], 1.0) for name, value in plain.items()}
        self.backprop(totals, parameters, Turn(scale, reduce, step, last, fraction))
        return weighted

    @abc.abstractmethod
    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """What distinguishes a weighting: from each group's total, in the order of `groups`, to `.grad`."""

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The present factor of each group, detached; a group that is not listed has 1."""
        return {}

    def after_step(self) -> None:
        """Move what is measured during steps; called when the optimizer has stepped."""

    def after_epoch(self, reduce: Change | None = None) -> None:
        """Move what is measured over epochs; `reduce` sums a tensor over ranks."""

    def _totals(self, terms: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, Tensor]:
        """Sum of each group's terms, in the order of `self.groups`, or of their appearance when none are named."""
        homeless = sorted(set(terms) - set(groups))
        found = dict.fromkeys(groups[name] for name in terms if name in groups)
        if homeless or (self.groups and set(found) != set(self.groups)):
            raise SettingError(
                f"weighting {type(self).__name__} was built for the groups {sorted(self.groups)}; the step gave "
                f"{sorted(found)}" + (f", and terms without a group: {homeless}" if homeless else "")
            )
        totals: dict[str, Tensor] = {}
        for name, value in terms.items():
            group = groups[name]
            totals[group] = totals[group] + value if group in totals else value
        return {group: totals[group] for group in self.groups or found}


class WeightingConfig(BaseModel):
    """Settings of one weighting, frozen; `name` is how recipes call it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    makes: ClassVar[type[Weighting]]
    plain_sgd: ClassVar[bool] = False
    """Does what a momentum and a weight decay would do: the optimizer must have neither."""
    name: str

    def build(self, groups: Sequence[str]) -> Weighting:
        """The weighting for terms of these groups; every setting but the name is an argument of its class."""
        return self.makes(groups, **self.model_dump(exclude={"name"}))


class Sum(Weighting):
    """The terms as the method weighted them, added up: one backward pass."""

    remembers: ClassVar[bool] = False

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One pass over the sum."""
        one_pass(list(totals.values()), turn)


class SumConfig(WeightingConfig):
    """Plain sum."""

    makes: ClassVar[type[Weighting]] = Sum
    name: Literal["sum"] = "sum"
