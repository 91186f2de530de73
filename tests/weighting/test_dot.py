"""DOT against the published trace of one number, and against two momenta kept by hand."""

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill.method import STUDENT
from crossdistill.methods.kd import KD
from crossdistill.stage import OptimizerConfig, Stage
from crossdistill.weighting import Dot, DotConfig


def _step(dot: Dot, terms: dict[str, Tensor], parameters: list[nn.Parameter], rate: float) -> None:
    for own in parameters:
        own.grad = None
    dot.backward(terms, {name: "task" if name == "task" else name for name in terms}, parameters)
    with torch.no_grad():
        for own in parameters:
            if own.grad is not None:
                own -= rate * own.grad
    dot.after_step()


def test_published_trace_of_a_scalar() -> None:
    theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
    dot = DotConfig(weight_decay=0.01).build(())
    seen = []
    for task, distil in ((1.0, 0.5), (2.0, 0.25), (3.0, 0.125)):
        _step(dot, {"task": (task * theta).sum(), "distil": (distil * theta).sum()}, [theta], 0.1)
        seen.append(float(theta.detach()))
    assert seen == pytest.approx([0.849, 0.491076, -0.128264876], abs=1e-9)


def test_a_parameter_with_one_gradient_moves_with_the_plain_momentum() -> None:
    both, task, distil = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    dot = Dot(momentum=0.8, delta=0.1, weight_decay=0.5)
    hand = [torch.ones(2, dtype=torch.float64) for _ in range(3)]
    speeds = [torch.zeros(2, dtype=torch.float64) for _ in range(4)]
    for step in range(4):
        a, b = 1.0 + step, 2.0 - step / 4
        terms = {"task": a * (both.sum() + task.sum()), "first": b * both.sum(), "second": b * distil.sum()}
        _step(dot, terms, [both, task, distil], 0.01)
        # In the first step the speeds are 0, so that the momentum does not matter.
        speeds[0] = 0.7 * speeds[0] + a + 0.5 * hand[0]
        speeds[1] = 0.9 * speeds[1] + b
        speeds[2] = 0.8 * speeds[2] + a + 0.5 * hand[1]
        speeds[3] = 0.8 * speeds[3] + b + 0.5 * hand[2]
        hand[0] = hand[0] - 0.01 * (speeds[0] + speeds[1])
        hand[1] = hand[1] - 0.01 * speeds[2]
        hand[2] = hand[2] - 0.01 * speeds[3]
        for own, wanted in zip((both, task, distil), hand, strict=True):
            torch.testing.assert_close(own.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_micro_batches_are_the_batch_and_nothing_moves_before_the_step() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    results = []
    for parts in (1, 3):
        own = nn.Parameter(torch.ones(3, dtype=torch.float64))
        dot = Dot()
        for _ in range(3):
            own.grad = None
            chunks = x.chunk(parts)
            for number, part in enumerate(chunks):
                terms = {"task": (part @ own).square().sum(), "distil": (part @ own).abs().sum()}
                dot.backward(terms, {"task": "task", "distil": "distil"}, [own], last=number + 1 == len(chunks))
            assert own.grad is not None
            with torch.no_grad():
                own -= 0.01 * own.grad
            dot.after_step()
        results.append(own.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_its_state_comes_back() -> None:
    def go(dot: Dot, own: nn.Parameter, steps: range) -> None:
        for step in steps:
            _step(dot, {"task": (own * (step + 1)).sum(), "distil": own.square().sum()}, [own], 0.01)

    whole, half = (nn.Parameter(torch.ones(3)) for _ in range(2))
    go(Dot(), whole, range(6))
    first, second = Dot(), Dot()
    go(first, half, range(3))
    second.load_state_dict(first.state_dict())
    go(second, half, range(3, 6))
    assert torch.equal(whole, half)


def test_without_a_task_there_is_one_momentum() -> None:
    own = nn.Parameter(torch.zeros(1))
    dot = Dot(momentum=0.5, delta=0.2)
    for _ in range(2):
        _step(dot, {"hint": own.sum()}, [own], 1.0)
    assert float(own.detach()) == pytest.approx(-1 - 1.5)


def test_it_refuses_another_momentum_beside_it() -> None:
    with raises(ValueError, "optimizer.name", "sgd", "optimizer.momentum"):
        Stage.model_validate({"method": KD(), "epochs": 1, "weighting": "dot", "learner": STUDENT})
    plain = OptimizerConfig(name="sgd", momentum=0.0)
    assert Stage.model_validate({"method": KD(), "epochs": 1, "weighting": "dot", "optimizer": plain}).weighting
