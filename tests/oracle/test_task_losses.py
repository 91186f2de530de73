"""The losses of the tasks, each against a slow re-derivation: Python loops in float64, written from the definition."""

import math

import pytest
import torch
from derivations import assert_equal, draw

from crossdistill import losses
from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import SettingError, ShapeError

NAN = float("nan")


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(value) / total for value in row]


def test_classes_and_soft_labels() -> None:
    logits = draw(4, 3)
    classes = torch.tensor([0, 2, MISSING_TARGET, 1])
    wanted = [
        0.0 if number == MISSING_TARGET else -math.log(softmax(row)[number])
        for row, number in zip(logits.tolist(), classes.tolist(), strict=True)
    ]
    assert_equal(losses.task_loss("classes", logits, classes), torch.tensor(wanted, dtype=torch.float64))
    soft = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [NAN] * 3, [0.4, 0.6, 0.0]], dtype=torch.float64)
    wanted = [
        0.0 if number == 2 else -sum(p * math.log(q) for p, q in zip(target, softmax(row), strict=True))
        for number, (row, target) in enumerate(zip(logits.tolist(), soft.tolist(), strict=True))
    ]
    assert_equal(losses.task_loss("soft", logits, soft), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("positive", [None, [2.0, 0.5, 1.0]])
def test_labels(positive: list[float] | None) -> None:
    logits = draw(4, 3)
    targets = torch.tensor([[1, 0, 1], [0, NAN, 1], [NAN, NAN, NAN], [0, 0, 0]], dtype=torch.float64)
    wanted = []
    for row, labels in zip(logits.tolist(), targets.tolist(), strict=True):
        known = [
            -weight * math.log(sigmoid(value)) if label else -math.log(1 - sigmoid(value))
            for value, label, weight in zip(row, labels, positive or [1.0] * 3, strict=True)
            if label == label
        ]
        wanted.append(sum(known) / len(known) if known else 0.0)
    weights = None if positive is None else torch.tensor(positive, dtype=torch.float64)
    found = losses.task_loss("multi-label", logits, targets, positive=weights)
    assert_equal(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("smooth", [None, 0.5, 1.0])
def test_numbers(smooth: float | None) -> None:
    outputs, targets = draw(5, 2), draw(5, 2).roll(1, 0)
    targets[1, 0], targets[3] = NAN, NAN
    wanted = []
    for row, numbers in zip(outputs.tolist(), targets.tolist(), strict=True):
        errors = []
        for value, number in zip(row, numbers, strict=True):
            if number == number:
                error = abs(value - number)
                if smooth is None:
                    errors.append(error**2)
                else:
                    errors.append(error**2 / (2 * smooth) if error < smooth else error - smooth / 2)
        wanted.append(sum(errors) / len(errors) if errors else 0.0)
    found = losses.task_loss("regression", outputs, targets, smooth=smooth)
    assert_equal(found, torch.tensor(wanted, dtype=torch.float64))


def test_missing_targets_give_no_gradient() -> None:
    for task in ("multi-label", "regression", "soft"):
        logits = draw(2, 3).requires_grad_()
        targets = torch.full((2, 3), NAN, dtype=torch.float64)
        assert torch.equal(torch.autograd.grad(losses.task_loss(task, logits, targets).sum(), logits)[0], 0 * logits)


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError):
        losses.task_loss("regression", draw(4, 2), torch.zeros(4))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_of_labels(temperature: float) -> None:
    mine, theirs = draw(4, 3), draw(4, 3).roll(1, 0)
    wanted = []
    for one, other in zip(mine.tolist(), theirs.tolist(), strict=True):
        total = 0.0
        for value, target in zip(one, other, strict=True):
            p, q = sigmoid(target / temperature), sigmoid(value / temperature)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        wanted.append(temperature**2 * total / len(one))
    assert_equal(losses.sigmoid_kl(mine, theirs, temperature), torch.tensor(wanted, dtype=torch.float64))
    assert_equal(losses.sigmoid_kl(mine, mine, temperature), torch.zeros(4, dtype=torch.float64))


def test_the_divergence_of_labels_refuses() -> None:
    with pytest.raises(SettingError):
        losses.sigmoid_kl(draw(2, 3), draw(2, 3), 0.0)
