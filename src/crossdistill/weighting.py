"""How the terms of a step become gradients: plain sum, learned or measured weights, gradient surgery.

A weighting works on *groups*: terms of one group are one task and are summed first. Term values come in reduced
and multiplied by the method's own weights, so that parts of all ranks and micro-batches add up to the whole.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from crossdistill.errors import SettingError

Change = Callable[[Tensor], Tensor]
"""Tensor to tensor: a loss scaler's `scale`, or a sum over ranks."""


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call of `Weighting.backward` says of the step that it belongs to; the words are explained there."""

    scale: Change
    reduce: Change | None
    step: int
    last: bool
    fraction: float


def _descend(losses: list[Tensor], turn: Turn) -> None:
    """One backward pass over the sum."""
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
        scale: Change = _same,
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
        self.descend(totals, parameters, Turn(scale, reduce, step, last, fraction))
        return weighted

    @abc.abstractmethod
    def descend(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
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


class Sum(Weighting):
    """The terms as the method weighted them, added up: one backward pass."""

    remembers: ClassVar[bool] = False

    def descend(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One pass over the sum."""
        _descend(list(totals.values()), turn)


class Uncertainty(Weighting):
    """Homoscedastic uncertainty, Kendall, Gal and Cipolla, CVPR 2018: sum of exp(-s) · L + s / 2 over groups.

    s = log σ² is learned, one number for each group, from 0. Groups in `regression` are squared errors and get
    exp(-s) / 2 (the paper's equation 7), the others exp(-s) (equation 10). `log_variances` belongs in the
    optimizer, without weight decay, and in the all-reduce.
    """

    def __init__(self, groups: Sequence[str], regression: Sequence[str] = ()) -> None:
        super().__init__(groups)
        unknown = sorted(set(regression) - set(groups))
        if unknown:
            raise SettingError(f"uncertainty weighting: regression groups {unknown} are not among {sorted(groups)}")
        self.log_variances = nn.Parameter(torch.zeros(len(self.groups)))
        self.halves: Tensor
        halves = torch.tensor([0.5 if group in regression else 1.0 for group in self.groups])
        self.register_buffer("halves", halves, persistent=False)

    def descend(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One pass, which reaches the log-variances too."""
        factors = self._factors()
        losses = [factors[index] * total for index, total in enumerate(totals.values())]
        _descend([*losses, turn.fraction * 0.5 * self.log_variances.sum()], turn)

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """exp(-s), halved for regression."""
        return dict(zip(self.groups, self._factors().detach().unbind(), strict=True))

    def _factors(self) -> Tensor:
        return self.halves * torch.exp(-self.log_variances)


class LossRatio(Weighting):
    """Dynamic weight averaging, Liu, Johns and Davison, CVPR 2019: groups that fall slowly weigh more.

    With G groups and L the mean of a group over an epoch, the factors in epoch t are
    G · softmax(L(t-1) / L(t-2) / temperature); they are 1 in the first two epochs. Losses must be positive.
    """

    def __init__(self, groups: Sequence[str], temperature: float = 2.0) -> None:
        super().__init__(groups)
        self.temperature = temperature
        size = len(self.groups)
        self.factors: Tensor
        self.sums: Tensor
        self.steps: Tensor
        self.previous: Tensor
        self.register_buffer("factors", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # NaN: no epoch has ended yet.
        self.register_buffer("previous", torch.full((size,), torch.nan))
        self._pending: Tensor | None = None

    def descend(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One pass over the weighted sum; the values are remembered until `after_step`."""
        _descend([self.factors[index] * total for index, total in enumerate(totals.values())], turn)
        values = torch.stack([total.detach() for total in totals.values()]).to(self.sums)
        self._pending = values if self._pending is None else self._pending + values

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The factors of this epoch."""
        return dict(zip(self.groups, self.factors.unbind(), strict=True))

    def after_step(self) -> None:
        """Count the step into the epoch's mean."""
        if self._pending is not None:
            self.sums += self._pending
            self.steps += 1
            self._pending = None

    def after_epoch(self, reduce: Change | None = None) -> None:
        """The next epoch's factors from the means of the last two."""
        means = (self.sums if reduce is None else reduce(self.sums)) / self.steps
        ratios = torch.where(self.previous.isnan(), 1.0, means / self.previous)
        self.factors.copy_(len(self.groups) * torch.softmax(ratios / self.temperature, 0))
        self.previous.copy_(means)
        self.sums.zero_()
        self.steps.zero_()


class Separate(Weighting):
    """What weightings that need each group's own gradient share: how gradients are taken, held and laid down."""

    needs_separate: ClassVar[bool] = True

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__(groups)
        self._held: Tensor | None = None
        self._used: set[int] = set()

    @abc.abstractmethod
    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The step's gradient from those of the groups (scaled) and their losses (not scaled)."""

    def descend(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One pass for each group; gradients and losses of all of them are one tensor, hence one sum over ranks."""
        rows = []
        for index, total in enumerate(totals.values()):
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if total.requires_grad:
                more = index + 1 < len(totals)
                found = torch.autograd.grad(turn.scale(total), parameters, retain_graph=more, allow_unused=True)
            self._used.update(place for place, gradient in enumerate(found) if gradient is not None)
            pairs = zip(found, parameters, strict=True)
            flat = [(torch.zeros_like(own) if one is None else one).flatten() for one, own in pairs]
            rows.append(torch.cat([*flat, total.detach().to(flat[0]).view(1)]))
        held = torch.stack(rows)
        self._held = held if self._held is None else self._held + held
        if turn.last:
            self._lay_down(parameters, turn)

    def _lay_down(self, parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """Combine what was held and add it to `.grad`; a parameter that no group used keeps its None."""
        assert self._held is not None
        whole = self._held if turn.reduce is None else turn.reduce(self._held)
        combined = self.combine(whole[:, :-1], whole[:, -1], turn)
        pieces = torch.split(combined, [own.numel() for own in parameters])
        for place, (own, piece) in enumerate(zip(parameters, pieces, strict=True)):
            # With several ranks another one may have used it, and all must step alike.
            if place in self._used or turn.reduce is not None:
                gradient = piece.view_as(own).to(own.dtype)
                own.grad = gradient.clone() if own.grad is None else own.grad + gradient
        self._held = None
        self._used = set()


class GradNorm(Separate):
    """Gradient normalisation, Chen et al., ICML 2018: every group pulls with a norm that suits its pace.

    With G groups, n = norm of w · L's gradient over `parameters`, m the mean of n over groups and r a group's
    L / L(0) divided by the mean of that over groups, one descent step of |n - m · r^alpha| (its target taken as
    constant) moves each w; then the w are scaled to sum to G. Departures from the paper: the norm is over all
    that trains, not one shared layer, and w moves by plain descent. Losses must be positive.
    """

    def __init__(self, groups: Sequence[str], alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        super().__init__(groups)
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.factors: Tensor
        self.first: Tensor
        self.register_buffer("factors", torch.ones(len(self.groups)))
        # NaN: no step was made yet.
        self.register_buffer("first", torch.full((len(self.groups),), torch.nan))
        self._pending: tuple[Tensor, Tensor] | None = None

    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The weighted sum; the weights' own move waits for `after_step`."""
        factors = self.factors.to(gradients)
        first = torch.where(self.first.isnan(), losses, self.first.to(losses))
        norms = gradients.norm(dim=1) / turn.scale(torch.ones((), device=gradients.device, dtype=gradients.dtype))
        pulls = factors * norms
        pace = losses / first
        targets = pulls.mean() * (pace / pace.mean()) ** self.alpha
        moved = (factors - self.learning_rate * torch.sign(pulls - targets) * norms).clamp_min(0.0)
        moved = moved * (len(self.groups) / moved.sum())
        # An overflow of mixed precision skips the optimizer's step and must not reach the weights either.
        self._pending = (torch.where(moved.isfinite().all(), moved, factors), first)
        return factors @ gradients

    def weights(self) -> Mapping[str, Float[Tensor, ""]]:
        """The learned w."""
        return dict(zip(self.groups, self.factors.unbind(), strict=True))

    def after_step(self) -> None:
        """Move the weights, and keep the first step's losses."""
        if self._pending is not None:
            factors, first = self._pending
            self.factors.copy_(factors)
            self.first.copy_(first)
            self._pending = None


class PCGrad(Separate):
    """Gradient surgery, Yu et al., NeurIPS 2020: a group's gradient loses what conflicts with another group's.

    Each gradient meets the others in a random order (a function of `seed` and the step, so equal on all ranks and
    after a resume); where the inner product is negative, the component along the other's original gradient goes.
    """

    remembers: ClassVar[bool] = False

    def __init__(self, groups: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__(groups)
        self.seed = seed

    def orders(self, size: int, step: int) -> list[list[int]]:
        """For each of `size` groups, the others in the order in which it meets them in this step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = [torch.randperm(size, generator=generator).tolist() for _ in range(size)]
        return [[other for other in order if other != own] for own, order in enumerate(drawn)]

    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The sum of the projected gradients.

        Every projection stays in the span of the G gradients, so it is carried out on coefficients with the
        G by G inner products: P numbers are read twice, whatever G.
        """
        products = gradients @ gradients.T
        tiny = torch.finfo(products.dtype).tiny
        coefficients = torch.eye(len(products), dtype=products.dtype, device=products.device)
        for own, order in enumerate(self.orders(len(products), turn.step)):
            for other in order:
                conflict = (coefficients[own] @ products[:, other]).clamp_max(0.0)
                coefficients[own, other] -= conflict / products[other, other].clamp_min(tiny)
        return coefficients.sum(0) @ gradients


class WeightingConfig(BaseModel):
    """Settings of one weighting, frozen; `name` is how recipes call it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    makes: ClassVar[type[Weighting]]
    name: str

    def build(self, groups: Sequence[str]) -> Weighting:
        """The weighting for terms of these groups; every setting but the name is an argument of its class."""
        return self.makes(groups, **self.model_dump(exclude={"name"}))


class SumConfig(WeightingConfig):
    """Plain sum."""

    makes: ClassVar[type[Weighting]] = Sum
    name: Literal["sum"] = "sum"


class UncertaintyConfig(WeightingConfig):
    """Learned log-variances."""

    makes: ClassVar[type[Weighting]] = Uncertainty
    name: Literal["uncertainty"] = "uncertainty"
    regression: tuple[str, ...] = Field((), description="groups whose terms are squared errors")


class LossRatioConfig(WeightingConfig):
    """Dynamic weight averaging."""

    makes: ClassVar[type[Weighting]] = LossRatio
    name: Literal["loss-ratio"] = "loss-ratio"
    temperature: float = Field(2.0, gt=0, description="dimensionless; higher means more equal factors")


class GradNormConfig(WeightingConfig):
    """Gradient normalisation."""

    makes: ClassVar[type[Weighting]] = GradNorm
    name: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(1.5, ge=0, description="dimensionless; how strongly slow groups are pulled along")
    learning_rate: float = Field(0.025, gt=0, description="of the weights; dimensionless")


class PCGradConfig(WeightingConfig):
    """Gradient surgery."""

    makes: ClassVar[type[Weighting]] = PCGrad
    name: Literal["pcgrad"] = "pcgrad"
    seed: int = Field(0, ge=0, description="of the order in which gradients meet")


AnyWeighting = Annotated[
    SumConfig | UncertaintyConfig | LossRatioConfig | GradNormConfig | PCGradConfig, Field(discriminator="name")
]
"""The type of a recipe's field: pydantic picks the class by `name` and lists the names when there is no such one."""
