"""One pass over the content of a data set: NaN and Inf are refused, and everything is hashed."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.errors import DataError

OnProgress = Callable[[str, int, int], None]
"""Called with a description, how many are done, and how many there are."""

ROWS_AT_ONCE = 4096
BLOCK_BYTES = 2**26
"""Rows that are read together when all of the data are looked at: they bound the memory that a mapped file takes."""
SAMPLE_BYTES = 2**26
"""Of a larger tensor, so much is looked at to see whether it was changed: a twentieth of a second."""
BAR_BYTES = 2**29
"""Data from this size on show a bar of their own on a terminal: reading them takes seconds."""


def quiet(description: str, done: int, total: int) -> None:
    """A progress display that shows nothing."""


class Content:
    """sha256 of what is added, tensor by tensor and text by text; floating-point inputs are checked on the way."""

    def __init__(self, name: str, progress: OnProgress, rows: int) -> None:
        self._name = name
        self._progress = progress
        self._digest = hashlib.sha256()
        self._done, self._rows = 0, rows

    def text(self, value: object) -> None:
        """Plain JSON."""
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

    def hexadecimal(self) -> str:
        """The hash of everything so far."""
        return self._digest.hexdigest()

    def _begin(self, what: str, tensor: Tensor) -> None:
        self._digest.update(f"{what} {tensor.dtype} {tuple(tensor.shape)};".encode())

    def _update(self, block: Tensor) -> None:
        # A dimension of one element may have any stride, also in what PyTorch calls contiguous.
        flat = block.reshape(-1).clone(memory_format=torch.contiguous_format)
        self._digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def hash_content(
    name: str,
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    splits: Mapping[str, Tensor],
    specs: Mapping[str, InputSpec],
    labels: Mapping[str, Tensor | None],
    classes: Sequence[str],
    domain: Sequence[str] | None,
    progress: OnProgress | None = None,
) -> str:
    """sha256 over everything that a student could learn from or be measured on, and over how it is described.

    `labels` are `targets` and `labelled`. `progress` is told of every block of rows; without it, large data show a bar
    on a terminal.

    Raises:
        DataError: NaN or Inf in an example that is present; names the modality and the first rows.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())
    with _shown(progress, size) as told:
        content = Content(name, told, sum(map(len, inputs.values())))
        content.text([name, classes, domain])
        for modality in sorted(inputs):
            content.modality(modality, inputs[modality], present.get(modality))
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
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    splits: Mapping[str, Tensor],
    targets: Tensor,
) -> str:
    """sha256 of all rows, or of some across all of them where these are more than `SAMPLE_BYTES`."""
    digest = hashlib.sha256()
    tensors = {f"split {name}": rows for name, rows in splits.items()} | {"targets": targets}
    tensors |= {f"present {name}": mask for name, mask in present.items()}
    tensors |= {f"input {name}": values for name, values in inputs.items()}
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


def check_finite(name: str, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Refuse NaN and Inf in examples that are present.

    Raises:
        DataError: names the modality and the first rows.
    """
    for modality, tensor in inputs.items():
        bad: list[int] = []
        start = 0
        for block in _in_blocks(tensor):
            bad += [start + row for row in _not_finite(block, present.get(modality), start)]
            start += len(block)
        refuse(name, modality, bad, len(tensor))


def refuse(name: str, modality: str, bad: Sequence[int], rows: int) -> None:
    """Raise where some rows are bad.

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
    if not block.is_floating_point():
        return []
    finite = block.isfinite().flatten(1).all(1)
    if present is not None:
        finite |= ~present[start : start + len(block)]
    return [] if bool(finite.all()) else [int(row) for row in (~finite).nonzero().flatten()]


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
