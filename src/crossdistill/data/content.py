"""One pass over the content of a data set, which rejects NaN and Inf and hashes everything."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.row_source import Rows, RowSource, bytes_in_memory, sources_in, tensors_in_memory
from crossdistill.errors import DataError

OnProgress = Callable[[str, int, int], None]
"""Called with a description, the number of items done, and the total."""

ROWS_AT_ONCE = 4096
BLOCK_BYTES = 2**26
"""Limits of a block of rows that is read at once: they bound the memory for a mapped file."""
SAMPLE_BYTES = 2**26
"""Bytes of a larger tensor that are hashed to detect changes, which takes about 50 ms."""
BAR_BYTES = 2**29
"""Data from this size on show a progress bar on a terminal, since reading them takes seconds."""


def quiet(description: str, done: int, total: int) -> None:
    """A progress display that shows nothing."""


class Content:
    """SHA-256 over a sequence of tensors and texts; floating-point inputs are checked for NaN and Inf."""

    def __init__(self, name: str, progress: OnProgress, rows: int) -> None:
        self._name = name
        self._progress = progress
        self._digest = hashlib.sha256()
        self._done, self._rows = 0, rows

    def text(self, value: object) -> None:
        """Add a value as JSON."""
        self._digest.update(json.dumps(value, sort_keys=True).encode())

    def tensor(self, what: str, tensor: Tensor | None) -> None:
        """A tensor's type, shape and values."""
        if tensor is None:
            return
        self._begin(what, tensor)
        for block in _in_blocks(tensor if tensor.ndim else tensor[None]):
            self._update(block)

    def modality(self, name: str, tensor: Tensor, present: Tensor | None) -> None:
        """An input, in which rows that are present hold neither NaN nor Inf.

        Raises:
            DataError: names the modality and the first rows.
        """
        self._begin(f"input {name}", tensor)
        bad: list[int] = []
        start = 0
        for block in _in_blocks(tensor):
            bad += [start + row for row in _not_finite(block, present, start)]
            self._update(block)
            start += len(block)
            self._done += len(block)
            self._progress(f"reading {self._name}", self._done, self._rows)
        refuse(self._name, name, bad, len(tensor))

    def source(self, name: str, source: RowSource) -> None:
        """A row source, by the fingerprint of its content; its rows are checked when they are read."""
        self.text([f"source {name}", str(source.dtype), list(source.shape), source.fingerprint])
        self._done += len(source)

    def hexadecimal(self) -> str:
        """The hash of everything added so far."""
        return self._digest.hexdigest()

    def _begin(self, what: str, tensor: Tensor) -> None:
        self._digest.update(f"{what} {tensor.dtype} {tuple(tensor.shape)};".encode())

    def _update(self, block: Tensor) -> None:
        # A dimension of one element may have any stride, even in a tensor that PyTorch calls contiguous.
        flat = block.reshape(-1)
        if flat.numel() < 2 or not flat.is_contiguous():
            flat = flat.clone(memory_format=torch.contiguous_format)
        self._digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def hash_content(
    name: str,
    inputs: Mapping[str, Rows],
    present: Mapping[str, Tensor],
    splits: Mapping[str, Tensor],
    specs: Mapping[str, InputSpec],
    labels: Mapping[str, Tensor | None],
    classes: Sequence[str],
    domain: Sequence[str] | None,
    progress: OnProgress | None = None,
) -> str:
    """SHA-256 over all data that training or evaluation can depend on, and over their specifications.

    `labels` are `targets` and `labelled`. `progress` is called after every block of rows; by default large data show a
    bar on a terminal.

    Raises:
        DataError: NaN or Inf in an example that is present; names the modality and the first rows.
    """
    size = sum(map(bytes_in_memory, inputs.values()))
    with _shown(progress, size) as told:
        content = Content(name, told, sum(map(len, inputs.values())))
        content.text([name, classes, domain])
        for modality in sorted(inputs):
            rows = inputs[modality]
            if isinstance(rows, Tensor):
                content.modality(modality, rows, present.get(modality))
            else:
                content.source(modality, rows)
        for kind, tensors in (("split", splits), ("present", present)):
            for key in sorted(tensors):
                content.tensor(f"{kind} {key}", tensors[key])
        for key, values in labels.items():
            content.tensor(key, values)
        for modality in sorted(specs):
            spec = specs[modality]
            content.text([modality, spec.kind, list(spec.shape), dict(spec.options)])
            for key in sorted(spec.parameters):
                content.tensor(f"parameter {modality} {key}", spec.parameters[key])
        return content.hexadecimal()


def content_sample(
    inputs: Mapping[str, Rows],
    present: Mapping[str, Tensor],
    splits: Mapping[str, Tensor],
    targets: Tensor,
) -> str:
    """SHA-256 of all rows; of a tensor above `SAMPLE_BYTES`, of evenly spaced rows; of a source, its fingerprint."""
    digest = hashlib.sha256()
    tensors = {f"split {name}": rows for name, rows in splits.items()} | {"targets": targets}
    tensors |= {f"present {name}": mask for name, mask in present.items()}
    tensors |= {f"input {name}": values for name, values in inputs.items() if isinstance(values, Tensor)}
    for name, source in sorted(sources_in(inputs).items()):
        digest.update(f"source {name} {source.fingerprint};".encode())
    for what in sorted(tensors):
        tensor = tensors[what]
        digest.update(f"{what} {tensor.dtype} {tuple(tensor.shape)};".encode())
        size = tensor.numel() * tensor.element_size()
        if size > SAMPLE_BYTES:
            rows = max(1, SAMPLE_BYTES * len(tensor) // size)
            tensor = tensor[torch.linspace(0, len(tensor) - 1, rows, dtype=torch.float64).long()]
        flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def check_finite(name: str, inputs: Mapping[str, Rows], present: Mapping[str, Tensor]) -> None:
    """Check examples that are present for NaN and Inf.

    Raises:
        DataError: names the modality and the first rows; or an input is a row source, which has no values to check.
    """
    for modality, tensor in tensors_in_memory(inputs, f"dataset {name!r}").items():
        bad: list[int] = []
        start = 0
        for block in _in_blocks(tensor):
            bad += [start + row for row in _not_finite(block, present.get(modality), start)]
            start += len(block)
        refuse(name, modality, bad, len(tensor))


def refuse(name: str, modality: str, bad: Sequence[int], rows: int) -> None:
    """Raise an error if there are bad rows.

    Raises:
        DataError: names the modality and the first rows.
    """
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise DataError(
            f"dataset {name!r}: {modality!r} holds NaN or Inf in {len(bad)} of {rows} rows: "
            f"{shown}; mend or drop them, or mark them absent with `present`"
        )


def _in_blocks(tensor: Tensor) -> Iterator[Tensor]:
    row = tensor.shape[1:].numel() * tensor.element_size()
    size = max(1, min(ROWS_AT_ONCE, BLOCK_BYTES // max(1, row)))
    for start in range(0, len(tensor), size):
        yield tensor[start : start + size]


def _not_finite(block: Tensor, present: Tensor | None, start: int) -> list[int]:
    # A sum is NaN or Inf if one value is, and an order of magnitude faster than a look at each of them.
    if not block.is_floating_point() or bool(block.sum().isfinite()):
        return []
    finite = block.isfinite().flatten(1).all(1)
    if present is not None:
        finite |= ~present[start : start + len(block)]
    return [] if bool(finite.all()) else [int(row) for row in (~finite).nonzero().flatten()]


@contextmanager
def on_terminal() -> Iterator[OnProgress]:
    """A progress display that is a bar on a terminal, and elsewhere shows nothing."""
    with _shown(None, BAR_BYTES) as told:
        yield told


@contextmanager
def _shown(progress: OnProgress | None, size: int) -> Iterator[OnProgress]:
    if progress is not None or size < BAR_BYTES or not sys.stderr.isatty():
        yield progress or quiet
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading the data", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)
