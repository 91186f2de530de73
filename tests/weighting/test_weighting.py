"""Each weighting against a slow re-derivation from its paper's equations, on two or three tasks of a small network."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from facts import raises
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from crossdistill.errors import SettingError
from crossdistill.weighting import (
    AnyWeighting,
    GradNorm,
    GradNormConfig,
    LossRatio,
    PCGrad,
    PCGradConfig,
    Sum,
    UncertaintyConfig,
    Weighting,
    WeightingConfig,
)

GROUPS = {"first": "task", "second": "task", "third": "distil", "fourth": "relation"}
ALL = ("task", "distil", "relation")
CONFIGS: TypeAdapter[WeightingConfig] = TypeAdapter(AnyWeighting)
NAMES = ("sum", "uncertainty", "loss-ratio", "gradnorm", "pcgrad")


class Problem:
    """Four positive terms that pull a small network in different directions; some parameters are reached by few."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.shared = nn.Linear(5, 4).double()
        self.head = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.idle = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.x = torch.randn(8, 5, dtype=torch.float64)
        self.y = torch.randn(8, 4, dtype=torch.float64)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.shared.parameters(), self.head, self.idle]

    def terms(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        out, wanted = self.shared(self.x[rows]), self.y[rows]
        return {
            "first": (out - wanted).square().sum() / 8,
            "second": 0.5 * (out @ self.head - 1.0).square().sum() / 8,
            "third": (out + 4.0 * wanted).square().sum() / 8,
            "fourth": (out - 5.0 * wanted.roll(1, 1)).abs().sum() / 8,
        }

    def gradient_of(self, loss: Tensor) -> Tensor:
        """One flat gradient, by a graph of its own."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = zip(found, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(own) if one is None else one).flatten() for one, own in pairs])

    def group_gradients(self) -> list[Tensor]:
        return [self.gradient_of(self.totals()[group]) for group in ALL]

    def totals(self) -> dict[str, Tensor]:
        terms = self.terms()
        return {"task": terms["first"] + terms["second"], "distil": terms["third"], "relation": terms["fourth"]}

    def laid_down(self) -> Tensor:
        """What a weighting left in `.grad`."""
        pairs = [(own.grad, own) for own in self.parameters]
        return torch.cat([(torch.zeros_like(own) if one is None else one).flatten() for one, own in pairs])

    def backprop(self, rate: float = 0.05) -> None:
        with torch.no_grad():
            for own in self.parameters:
                if own.grad is not None:
                    own -= rate * own.grad
                own.grad = None


def built(name: str) -> Weighting:
    return CONFIGS.validate_python({"name": name}).build(ALL).double()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_added_to_what_is_there_and_values_come_back_detached(name: str) -> None:
    fresh, used = Problem(), Problem()
    once, twice = built(name), built(name)
    once.backward(fresh.terms(), GROUPS, fresh.parameters)
    for own in used.parameters[:-1]:
        own.grad = torch.ones_like(own)
    values = twice.backward(used.terms(), GROUPS, used.parameters)
    reached = torch.cat([torch.ones(own.numel()) for own in used.parameters[:-1]] + [torch.zeros(2)])
    torch.testing.assert_close(used.laid_down(), fresh.laid_down() + reached)
    assert set(values) == set(GROUPS)
    assert not any(value.requires_grad for value in values.values())
    assert used.idle.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str) -> None:
    whole, parts = Problem(), Problem()
    one, many = built(name), built(name)
    one.backward(whole.terms(), GROUPS, whole.parameters, step=4)
    for index in range(4):
        rows = slice(2 * index, 2 * index + 2)
        many.backward(parts.terms(rows), GROUPS, parts.parameters, step=4, last=index == 3, fraction=0.25)
    torch.testing.assert_close(parts.laid_down(), whole.laid_down())
    for mine, other in zip(many.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    one.after_step()
    many.after_step()
    torch.testing.assert_close(many.state_dict(), one.state_dict(), equal_nan=True)


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad"])
def test_ranks_agree_through_one_reduction(name: str) -> None:
    whole, parts = Problem(), Problem()
    one = built(name)
    one.backward(whole.terms(), GROUPS, whole.parameters)
    sent: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        sent.append(tensor.clone())
        return tensor

    built(name).backward(parts.terms(slice(0, 3)), GROUPS, parts.parameters, reduce=keep)
    parts.backprop(0.0)
    rank = built(name)
    rank.backward(parts.terms(slice(3, 8)), GROUPS, parts.parameters, reduce=lambda tensor: tensor + sent[0])
    assert len(sent) == 1
    torch.testing.assert_close(parts.laid_down(), whole.laid_down())
    # Another rank may have used what this one did not: nobody may be left with None.
    assert parts.idle.grad is not None
    one.after_step()
    rank.after_step()
    torch.testing.assert_close(rank.state_dict(), one.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_loss_scale_multiplies_the_gradient_and_nothing_else(name: str) -> None:
    plain, scaled = Problem(), Problem()
    one, other = built(name), built(name)
    values = one.backward(plain.terms(), GROUPS, plain.parameters)
    again = other.backward(scaled.terms(), GROUPS, scaled.parameters, scale=lambda loss: loss * 1024.0)
    torch.testing.assert_close(scaled.laid_down(), 1024.0 * plain.laid_down())
    torch.testing.assert_close(again, values)
    one.after_step()
    other.after_step()
    torch.testing.assert_close(other.state_dict(), one.state_dict(), equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_continues_exactly(name: str) -> None:
    def train(weighting: Weighting, problem: Problem, epochs: Sequence[int]) -> None:
        for epoch in epochs:
            for step in range(3):
                weighting.backward(problem.terms(), GROUPS, problem.parameters, step=3 * epoch + step)
                problem.backprop()
                with torch.no_grad():
                    for own in weighting.parameters():
                        assert own.grad is not None
                        own -= 0.1 * own.grad
                        own.grad = None
                weighting.after_step()
            weighting.after_epoch()

    through, whole = Problem(), built(name)
    train(whole, through, range(5))
    stopped, first = Problem(), built(name)
    train(first, stopped, range(3))
    second = built(name)
    second.load_state_dict(first.state_dict())
    train(second, stopped, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(through.parameters, stopped.parameters, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["uncertainty", "loss-ratio", "gradnorm"])
def test_other_groups_than_those_built_for_are_refused(name: str) -> None:
    problem = Problem()
    weighting = CONFIGS.validate_python({"name": name}).build(("task", "distil"))
    with raises(SettingError, "'distil', 'task'", "relation"):
        weighting.backward(problem.terms(), GROUPS, problem.parameters)
    with raises(SettingError, "groups"):
        CONFIGS.validate_python({"name": name}).build(())


def test_a_term_without_a_group_is_refused() -> None:
    problem = Problem()
    with raises(SettingError, "'fourth'"):
        Sum().backward(problem.terms(), dict.fromkeys(("first", "second", "third"), "task"), problem.parameters)


def test_sum_is_the_gradient_of_the_sum() -> None:
    problem = Problem()
    values = Sum().backward(problem.terms(), GROUPS, problem.parameters)
    torch.testing.assert_close(problem.laid_down(), problem.gradient_of(sum(problem.terms().values(), torch.zeros(()))))
    assert {name: value.item() for name, value in values.items()} == {k: v.item() for k, v in problem.terms().items()}


@pytest.mark.parametrize("regression", [(), ("relation",)])
def test_uncertainty_follows_kendall(regression: tuple[str, ...]) -> None:
    problem = Problem()
    weighting = UncertaintyConfig(regression=regression).build(ALL).double()
    log_variances = [0.3, -0.7, 1.1]
    with torch.no_grad():
        weighting.log_variances.copy_(torch.tensor(log_variances))
    values = weighting.backward(problem.terms(), GROUPS, problem.parameters)
    expected, slopes = torch.zeros_like(problem.laid_down()), []
    for group, s in zip(ALL, log_variances, strict=True):
        precision = math.exp(-s) / (2 if group in regression else 1)
        expected += precision * problem.gradient_of(problem.totals()[group])
        slopes.append(-precision * problem.totals()[group].item() + 0.5)
    torch.testing.assert_close(problem.laid_down(), expected)
    assert weighting.log_variances.grad.tolist() == pytest.approx(slopes)
    assert values["third"].item() == pytest.approx(math.exp(0.7) * problem.terms()["third"].item())


def test_uncertainty_refuses_an_unknown_regression_group() -> None:
    with raises(SettingError, "'pixels'"):
        UncertaintyConfig(regression=("pixels",)).build(ALL)


def test_loss_ratio_follows_liu() -> None:
    problem = Problem()
    weighting = LossRatio(ALL, temperature=2.0).double()
    history: list[list[float]] = []
    for epoch in range(4):
        factors = [1.0, 1.0, 1.0]
        if epoch >= 2:
            ratios = [last / before for last, before in zip(history[-1], history[-2], strict=True)]
            powers = [math.exp(ratio / 2.0) for ratio in ratios]
            factors = [3 * power / sum(powers) for power in powers]
        assert [weight.item() for weight in weighting.weights().values()] == pytest.approx(factors, rel=1e-6)
        seen = []
        for _ in range(3):
            seen.append([problem.totals()[group].item() for group in ALL])
            expected = sum(
                (w * problem.gradient_of(problem.totals()[group]) for w, group in zip(factors, ALL, strict=True)),
                torch.zeros(()),
            )
            weighting.backward(problem.terms(), GROUPS, problem.parameters)
            torch.testing.assert_close(problem.laid_down(), expected, rtol=1e-6, atol=1e-9)
            problem.backprop()
            weighting.after_step()
        weighting.after_epoch()
        history.append([sum(column) / 3 for column in zip(*seen, strict=True)])
    assert max(factors) - min(factors) > 1e-3


def test_gradnorm_follows_chen() -> None:
    problem = Problem()
    alpha, rate = 0.8, 0.1
    weighting = GradNorm(ALL, alpha=alpha, learning_rate=rate).double()
    factors, first = [1.0, 1.0, 1.0], [problem.totals()[group].item() for group in ALL]
    for _ in range(4):
        gradients = problem.group_gradients()
        norms = [gradient.norm().item() for gradient in gradients]
        losses = [problem.totals()[group].item() for group in ALL]
        ratios = [loss / start for loss, start in zip(losses, first, strict=True)]
        paces = [ratio / (sum(ratios) / 3) for ratio in ratios]
        mean = sum(w * n for w, n in zip(factors, norms, strict=True)) / 3
        expected = sum((w * g for w, g in zip(factors, gradients, strict=True)), torch.zeros(()))
        values = weighting.backward(problem.terms(), GROUPS, problem.parameters)
        torch.testing.assert_close(problem.laid_down(), expected)
        assert values["fourth"].item() == pytest.approx(factors[2] * losses[2])
        # d/dw |w n - target| = sign(w n - target) n, then the factors are scaled to sum to the number of groups.
        moved = [
            w - rate * math.copysign(n, w * n - mean * pace**alpha)
            for w, n, pace in zip(factors, norms, paces, strict=True)
        ]
        moved = [max(w, 0.0) for w in moved]
        factors = [3 * w / sum(moved) for w in moved]
        problem.backprop()
        weighting.after_step()
        assert [weight.item() for weight in weighting.weights().values()] == pytest.approx(factors, rel=1e-9)
    assert max(factors) - min(factors) > 0.05


def test_gradnorm_keeps_its_weights_through_an_overflow() -> None:
    problem = Problem()
    weighting = GradNormConfig().build(ALL).double()
    weighting.backward(problem.terms(), GROUPS, problem.parameters, scale=lambda loss: loss * torch.inf)
    weighting.after_step()
    assert [weight.item() for weight in weighting.weights().values()] == [1.0, 1.0, 1.0]


class Quadratic:
    """Three tasks in the plane, whose gradients are the given vectors."""

    def __init__(self, gradients: Mapping[str, Sequence[float]]) -> None:
        self.point = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.terms = {n: self.point @ torch.tensor(g, dtype=torch.float64) for n, g in gradients.items()}
        self.groups = {name: name for name in gradients}


class InThisOrder(PCGrad):
    """Surgery in a given order."""

    def __init__(self, groups: Sequence[str], order: list[list[int]]) -> None:
        super().__init__(groups)
        self.order = order

    def orders(self, size: int, step: int) -> list[list[int]]:
        return self.order


def test_pcgrad_by_hand() -> None:
    # a = (1, 0), b = (-1, 1), c = (0, -2); a meets b then c, b meets c then a, c meets a then b.
    # a: a·b = -1, |b|² = 2, a + b/2 = (1/2, 1/2); with c: -1 < 0, |c|² = 4, + c/4 -> (1/2, 0).
    # b: b·c = -2, b + c/2 = (-1, 0); with a: -1 < 0, + a -> (0, 0).
    # c: c·a = 0, kept; c·b = -2, c + b -> (-1, -1).
    problem = Quadratic({"a": (1.0, 0.0), "b": (-1.0, 1.0), "c": (0.0, -2.0)})
    weighting = InThisOrder(("a", "b", "c"), [[1, 2], [2, 0], [0, 1]])
    weighting.backward(problem.terms, problem.groups, [problem.point])
    assert problem.point.grad.tolist() == pytest.approx([-0.5, -1.0])
    # The other order: a meets c (0, kept) then b -> (1/2, 1/2); b meets a -> (0, 1), then c -> (0, 0);
    # c meets b -> (-1, -1), then a (-1 < 0) -> (0, -1). The result depends on the order, so the order must be drawn.
    other = Quadratic({"a": (1.0, 0.0), "b": (-1.0, 1.0), "c": (0.0, -2.0)})
    InThisOrder(("a", "b", "c"), [[2, 1], [0, 2], [1, 0]]).backward(other.terms, other.groups, [other.point])
    assert other.point.grad.tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("step", range(4))
def test_pcgrad_follows_yu(step: int) -> None:
    problem = Problem()
    weighting = PCGrad(ALL, seed=7)
    originals = problem.group_gradients()
    total = torch.zeros_like(originals[0])
    conflicts = 0
    for gradient, order in zip(originals, weighting.orders(3, step), strict=True):
        surgical = gradient.clone()
        for index in order:
            inner = torch.dot(surgical, originals[index])
            if inner < 0:
                conflicts += 1
                surgical = surgical - inner / originals[index].square().sum() * originals[index]
        total = total + surgical
    assert conflicts > 0
    weighting.backward(problem.terms(), GROUPS, problem.parameters, step=step)
    torch.testing.assert_close(problem.laid_down(), total)


def test_pcgrad_order_is_drawn_from_seed_and_step() -> None:
    weighting = PCGrad(seed=1)
    assert weighting.orders(4, 5) == weighting.orders(4, 5)
    assert len({str(weighting.orders(4, step)) for step in range(20)}) > 10
    assert weighting.orders(4, 5) != PCGrad(seed=2).orders(4, 5)
    assert [sorted(order) for order in weighting.orders(3, 0)] == [[1, 2], [0, 2], [0, 1]]


def test_pcgrad_without_conflict_is_the_sum_and_survives_a_group_without_gradient() -> None:
    problem = Quadratic({"a": (1.0, 0.0), "b": (0.5, 1.0)})
    terms = {**problem.terms, "none": torch.zeros((), dtype=torch.float64)}
    PCGradConfig().build(()).backward(terms, {**problem.groups, "none": "none"}, [problem.point])
    assert problem.point.grad.tolist() == pytest.approx([1.5, 1.0])


def test_config_is_chosen_by_name_frozen_and_strict() -> None:
    assert CONFIGS.validate_python({"name": "gradnorm", "alpha": 0.12}) == GradNormConfig(alpha=0.12)
    with raises(ValidationError, "'sum', 'uncertainty', 'loss-ratio', 'gradnorm', 'pcgrad'"):
        CONFIGS.validate_python({"name": "gradnrom"})
    with raises(ValidationError, "extra_forbidden"):
        CONFIGS.validate_python({"name": "sum", "alpha": 1})
    with raises(ValidationError, "frozen_instance"):
        PCGradConfig().seed = 3
