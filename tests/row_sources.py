"""Row sources over tensors, for tests: they count their calls, and fail or vary on request."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data.dataset import Dataset
from crossdistill.runtime.hashing import tensor_hash


class TensorRows:
    """A tensor as a row source; `broken` rows raise, `fetched` lists the rows that were read."""

    def __init__(
        self, values: Tensor, broken: Mapping[int, Exception] | None = None, deterministic: bool = True
    ) -> None:
        self.values, self.broken, self.deterministic = values, dict(broken or {}), deterministic
        self.spec = InputSpec("array", tuple(values.shape[1:]))
        self.shape, self.dtype = tuple(values.shape), values.dtype
        self.fingerprint = tensor_hash(values)
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def name_of(self, row: int) -> str:
        return f"file-{row}.jpg"

    def fetch(self, rows: Tensor) -> Input:
        self.fetched += rows.tolist()
        for row in rows.tolist():
            if row in self.broken:
                raise self.broken[row]
        return self.values[rows]


def from_rows(dataset: Dataset, *names: str, **settings: object) -> Dataset:
    """The same data, with these modalities (by default all) as row sources."""
    chosen = names or tuple(dataset.inputs)
    sources = {name: TensorRows(dataset.inputs[name], **settings) for name in chosen}
    return replace(dataset, inputs={**dataset.inputs, **sources}, sample="")
