"""What the oracles share: draws, and the two equations in plain Python that all of them stand on."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def draw(*shape: int, scale: float = 2.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).requires_grad_()


def probabilities(logits: list[float], temperature: float) -> list[float]:
    highest = max(logits)
    weights = [math.exp((value - highest) / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def slow_kl(student: list[float], teacher: list[float], temperature: float, squared: bool = True) -> float:
    pairs = zip(probabilities(teacher, temperature), probabilities(student, temperature), strict=True)
    return (temperature**2 if squared else 1.0) * sum(t * (math.log(t) - math.log(s)) for t, s in pairs if t > 0)


def gradient_by_differences(value: Tensor, loss: Callable[[Tensor], Tensor], step: float = 1e-6) -> Tensor:
    result = torch.zeros_like(value)
    with torch.no_grad():
        for i in range(value.numel()):
            moved = [value.detach().clone() for _ in range(2)]
            moved[0].view(-1)[i] += step
            moved[1].view(-1)[i] -= step
            result.view(-1)[i] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    return result


def assert_equal(ours: Tensor, wanted: float | list[float] | Tensor) -> None:
    torch.testing.assert_close(ours.detach(), torch.as_tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)
