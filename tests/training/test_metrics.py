"""Metrics against their definitions, on class numbers drawn at random."""

import pytest
import torch

from crossdistill.training.metrics import METRICS, measure


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Of six classes one is never there and two are rare.
    targets = torch.multinomial(torch.tensor([0.5, 0.3, 0.1, 0.05, 0.05, 0.0]), 400, True, generator=generator)
    other = torch.randint(0, 5, (400,), generator=generator)
    return torch.where(torch.rand(400, generator=generator) < 0.6, targets, other), targets


def table(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    counts = torch.zeros(5, 5, dtype=torch.float64)
    for found, wanted in zip(predicted.tolist(), targets.tolist(), strict=True):
        counts[wanted, found] += 1
    return counts


def test_metrics_are_what_their_names_say() -> None:
    predicted, targets = drawn()
    counts = table(predicted, targets)
    right, wanted, said, rows = counts.diagonal(), counts.sum(1), counts.sum(0), counts.sum()
    by_chance = (wanted * said).sum() / rows**2
    apart = ((1 - (wanted**2).sum() / rows**2) * (1 - (said**2).sum() / rows**2)).sqrt()
    derived = {
        "accuracy": right.sum() / rows,
        "balanced-accuracy": (right / wanted).mean(),
        "macro-f1": (2 * right / (wanted + said)).mean(),
        "kappa": (right.sum() / rows - by_chance) / (1 - by_chance),
        "matthews": (right.sum() / rows - by_chance) / apart,
    }
    assert set(derived) == set(METRICS)
    for name, value in derived.items():
        assert measure(name, predicted, targets, 6) == pytest.approx(float(value), abs=1e-6), name
        assert measure(name, targets, targets, 6) == pytest.approx(1.0)


def test_without_rows_there_is_no_number() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert all(measure(name, nothing, nothing, 3) != measure(name, nothing, nothing, 3) for name in METRICS)
