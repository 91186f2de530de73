"""Metrics against their definitions, on predictions drawn at random; where it is simple, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from crossdistill.data.metric_names import METRICS, OF_PROBABILITIES
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions

NAN = float("nan")


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Of six classes one is never there and two are rare.
    targets = torch.multinomial(torch.tensor([0.5, 0.3, 0.1, 0.05, 0.05, 0.0]), 400, True, generator=generator)
    other = torch.randint(0, 5, (400,), generator=generator)
    return torch.where(torch.rand(400, generator=generator) < 0.6, targets, other), targets


def of_classes(predicted: torch.Tensor, targets: torch.Tensor, classes: int) -> Predictions:
    return Predictions(torch.arange(len(targets)), predicted, targets, columns=classes)


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
    assert set(derived) | OF_PROBABILITIES == set(METRICS["classes"])
    for name, value in derived.items():
        assert measure(name, of_classes(predicted, targets, 6)) == pytest.approx(float(value), abs=1e-6), name
        assert measure(name, of_classes(targets, targets, 6)) == pytest.approx(1.0)


def test_without_rows_there_is_no_number() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    values = [measure(name, of_classes(nothing, nothing, 3)) for name in METRICS["classes"]]
    assert all(value != value for value in values)


def test_metrics_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(60, 4, generator=generator) < 0.3).float()
    targets[:, 3] = 0
    likely = (0.4 * targets + 0.6 * torch.rand(60, 4, generator=generator)).clamp(0, 1)
    predictions = Predictions(torch.arange(60), (likely > 0.5).long(), targets, likely, "multi-label", 4)
    wanted = {
        "map": np.mean([sklearn.average_precision_score(targets[:, c], likely[:, c]) for c in range(3)]),
        "micro-f1": sklearn.f1_score(targets, likely > 0.5, average="micro", zero_division=0),
        "macro-f1": sklearn.f1_score(targets, likely > 0.5, average="macro", zero_division=0),
        "subset-accuracy": sklearn.accuracy_score(targets, likely > 0.5),
    }
    for name, value in wanted.items():
        assert measure(name, predictions) == pytest.approx(float(value), abs=1e-6), name
    assert predictions.scores().mean() == pytest.approx(float(((likely > 0.5) == targets).double().mean()))
    partly = targets.clone()
    partly[:30, 0] = NAN
    known = Predictions(torch.arange(60), predictions.predicted, partly, likely, "multi-label", 4)
    alone = [sklearn.average_precision_score(targets[30:, 0], likely[30:, 0])]
    alone += [sklearn.average_precision_score(targets[:, c], likely[:, c]) for c in (1, 2)]
    assert measure("map", known) == pytest.approx(np.mean(alone), abs=1e-6)


def test_metrics_of_numbers() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(50, 2, generator=generator) * 10 + 100
    predicted = targets + torch.randn(50, 2, generator=generator)
    targets[7, 1] = NAN
    predictions = Predictions(torch.arange(50), predicted, targets, None, "regression", 2)
    pairs = [
        (targets[:, 0], predicted[:, 0]),
        (targets[~targets[:, 1].isnan(), 1], predicted[~targets[:, 1].isnan(), 1]),
    ]
    wanted = {
        "r2": np.mean([sklearn.r2_score(*pair) for pair in pairs]),
        "mae": np.mean([sklearn.mean_absolute_error(*pair) for pair in pairs]),
        "rmse": np.mean([sklearn.root_mean_squared_error(*pair) for pair in pairs]),
    }
    for name, value in wanted.items():
        assert measure(name, predictions) == pytest.approx(float(value), rel=1e-6), name
    whole = Predictions(torch.arange(50), predicted[:, :1], targets[:, :1], None, "regression", 1)
    assert 1 + float(whole.scores().mean()) == pytest.approx(measure("r2", whole)), "the mean score is R2 - 1"


def test_metrics_of_soft_labels() -> None:
    targets = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    likely = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    predictions = Predictions(torch.arange(3), likely.argmax(1), targets, likely, "soft", 2)
    assert measure("accuracy", predictions) == pytest.approx(2 / 3)
    wanted = -(targets * likely.log()).sum(1).mean()
    assert measure("cross-entropy", predictions) == pytest.approx(float(wanted), abs=1e-6)
