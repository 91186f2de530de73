"""Passes without gradient: how many rows at a time."""

from typing import Any

import pytest
import torch

from crossdistill import evaluation
from crossdistill.data.dataset import Dataset
from crossdistill.evaluation import batches

CPU = torch.device("cpu")
ROWS = 2500


def sizes(**settings: Any) -> list[int]:
    inputs = {"small": torch.zeros(ROWS, 4), "large": torch.zeros(ROWS, 50, 50)}
    data = Dataset.from_arrays("two", inputs, torch.arange(ROWS) % 3)
    return [len(batch) for batch in batches(data, torch.arange(ROWS), CPU, **settings)]


def test_small_rows_go_by_the_thousand() -> None:
    assert sizes(only={"small"}) == [1024, 1024, 452]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, (10_016, 100)),
        ({"only": {"large"}}, (10_000, 100)),
        ({"only": {"small"}, "asked_bytes": 984}, (1000, 80)),
        ({"only": {"small"}, "asked_bytes": 10**9}, (1, 1)),
    ],
)
def test_large_rows_go_by_what_they_hold(
    settings: dict[str, Any], rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes, wanted = rows
    monkeypatch.setattr(evaluation, "PASS_BYTES", row_bytes * wanted)
    found = sizes(**settings)
    assert set(found[:-1]) == {wanted}
    assert sum(found) == ROWS
