"""Passes without gradient: batches in their order, and predictions of the rows that a source sees."""

import torch

from crossdistill.data.dataset import Dataset
from crossdistill.training.evaluation import batches

CPU = torch.device("cpu")
ROWS = 2500


def test_rows_come_in_their_order_a_size_at_a_time() -> None:
    inputs = {"small": torch.zeros(ROWS, 4), "large": torch.zeros(ROWS, 50, 50)}
    data = Dataset.from_arrays("two", inputs, torch.arange(ROWS) % 3)
    found = list(batches(data, torch.arange(ROWS), CPU, 1024, only={"small"}))
    assert [len(batch) for batch in found] == [1024, 1024, 452]
    assert torch.equal(torch.cat([batch.ids for batch in found]), torch.arange(ROWS))
    assert all(set(batch.inputs) == {"small"} for batch in found)
