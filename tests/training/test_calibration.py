"""Calibration against slow re-derivations, row by row, and against torchmetrics as a second opinion."""

import json
import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from crossdistill.errors import DataError, SettingError, ShapeError
from crossdistill.training.calibration import (
    brier_score,
    calibration,
    confidence_cells,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from tests.facts import raises


def drawn(rows: int = 300, classes: int = 7, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = scale * torch.randn(rows, classes, generator=generator)
    own = torch.multinomial((0.5 * logits).softmax(1), 1, generator=generator)[:, 0]
    return logits.softmax(1), own


def derived_ece(probabilities: torch.Tensor, targets: torch.Tensor, bins: int) -> float:
    rows: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for values, target in zip(probabilities.tolist(), targets.tolist(), strict=True):
        top = max(values)
        number = next(n for n in range(bins) if top <= (n + 1) / bins or n == bins - 1)
        rows[number].append((top, float(values.index(top) == target)))
    gaps = [abs(sum(right for _, right in part) - sum(top for top, _ in part)) for part in rows]
    return sum(gaps) / len(targets)


@pytest.mark.parametrize("bins", [15, 4])
def test_the_expected_calibration_error(bins: int) -> None:
    probabilities, targets = drawn()
    value = expected_calibration_error(probabilities, targets, bins)
    assert value == pytest.approx(derived_ece(probabilities, targets, bins), abs=1e-9)
    theirs = multiclass_calibration_error(probabilities, targets, probabilities.shape[1], n_bins=bins)
    assert value == pytest.approx(float(theirs), abs=1e-6)
    assert value > 0.02, "overconfident by construction"


def test_predictions_on_an_edge_are_in_the_interval_that_it_closes() -> None:
    found = reliability(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]]), torch.tensor([0, 0, 1]), 4)
    assert [one.rows for one in found] == [0, 1, 1, 1]
    assert [one.accuracy for one in found[1:]] == [1.0, 0.0, 1.0]
    assert math.isnan(found[0].confidence)


def test_likelihood_and_brier_score_row_by_row() -> None:
    probabilities, targets = drawn(60)
    pairs = list(zip(probabilities.double().tolist(), targets.tolist(), strict=True))
    nll = -sum(math.log(values[target]) for values, target in pairs) / len(pairs)
    brier = sum(
        sum((value - (number == target)) ** 2 for number, value in enumerate(values)) for values, target in pairs
    )
    assert negative_log_likelihood(probabilities, targets) == pytest.approx(nll, abs=1e-9)
    assert brier_score(probabilities, targets) == pytest.approx(brier / len(pairs), abs=1e-7)
    # A softmax that underflows to zero gives a large number, not infinity.
    assert negative_log_likelihood(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == pytest.approx(87.3365, abs=1e-3)


def test_cells_of_confidence_and_their_change() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.45, 0.55]])
    own = confidence_cells(probabilities, torch.tensor([0, 1, 0, 0]), 0.7)
    assert (own.confident_correct, own.confident_wrong, own.unsure_correct, own.unsure_wrong) == (1, 1, 1, 1)
    reference = confidence_cells(probabilities, torch.tensor([0, 0, 1, 0]), 0.7)
    change = own.change(reference)
    assert change["confident_correct"] == pytest.approx(-0.5)
    assert change["unsure_wrong"] == pytest.approx(-0.5)
    assert math.isnan(change["confident_wrong"]), "the reference has none"
    with raises(ShapeError, 4, 3):
        own.change(confidence_cells(probabilities[:3], torch.tensor([0, 1, 0]), 0.7))


def test_all_at_once_agrees_with_each_alone_and_is_json() -> None:
    probabilities, targets = drawn()
    found = calibration(probabilities, targets)
    assert found.accuracy == pytest.approx(float((probabilities.argmax(1) == targets).double().mean()))
    assert found.ece == expected_calibration_error(probabilities, targets)
    assert (found.nll, found.brier) == (
        negative_log_likelihood(probabilities, targets),
        brier_score(probabilities, targets),
    )
    assert found.cells == confidence_cells(probabilities, targets)
    plain = json.loads(json.dumps(found.as_data(), allow_nan=False))
    assert plain["cells"]["confident_correct"] == found.cells.confident_correct
    assert len(plain["bins"]) == 15
    assert plain["bins"][0]["accuracy"] is None
    nothing = calibration(probabilities[:0], targets[:0])
    assert nothing.rows == 0
    assert all(math.isnan(value) for value in (nothing.ece, nothing.nll, nothing.accuracy))


def test_values_that_are_no_probabilities_are_refused() -> None:
    probabilities, targets = drawn(4, 3)
    with raises(ShapeError, "(4, 3)", "(3,)"):
        expected_calibration_error(probabilities, targets[:3])
    logits = probabilities.log()
    with raises(DataError, "row 0", "softmax"):
        expected_calibration_error(logits, targets)
    with raises(DataError, "row 2", 3):
        calibration(probabilities, torch.tensor([0, 1, 3, 2]))
    with raises(SettingError, 1.5):
        confidence_cells(probabilities, targets, 1.5)
