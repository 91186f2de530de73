"""The rows of a step: inputs keyed by modality, with stable sample ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crossdistill.errors import ShapeError, SignalError, nearest

Input = Tensor | Mapping[str, Tensor]

MISSING_TARGET = -100
"""The target of a row without one: PyTorch's default `ignore_index`."""


Task = Literal["classes", "multi-label", "regression", "soft", "none"]
"""The kind of targets: one class, any number of labels, numbers, a distribution over the classes, or none at all."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The shape, format and preparation of one modality: a saved student reads files by it.

    `kind` is "image", "log-mel" or "array"; `shape` has no batch dimension; `options` hold all settings of the
    conversion of a file to the tensor (hertz, seconds, bands, normalisation), as plain JSON; `parameters` are fitted
    tensors (a principal basis), written beside the student's weights.
    """

    kind: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of paired data; every tensor shares dimension 0.

    `inputs` maps a modality or a rendering of it ("image", "image@clip") to a tensor or a mapping of tensors.
    `ids` are stable sample ids: the key of banks, queues and errors. `view` is the number of the seeded view of each
    row (None: view 0, the unchanged row). `targets` hold `MISSING_TARGET` in rows that have none; `labelled` marks the
    rows whose target the *student* may use (None: every row that has one). `present` marks the rows in which a modality
    is present; an unlisted modality always is. `total_rows` counts the rows of the whole optimizer step, over all ranks
    and micro-batches: every loss is a sum over rows divided by it. `task` is the kind of the targets; those of other
    kinds than classes are (B, C) in float, NaN where missing, and those of a regression are standardised.
    `domain_rows` are the rows of each domain in the whole optimizer step (None: not known).
    """

    inputs: Mapping[str, Input]
    ids: Int64[Tensor, " B"]
    view: Int64[Tensor, " B"] | None = None
    targets: Tensor | None = None
    labelled: Bool[Tensor, " B"] | None = None
    present: Mapping[str, Bool[Tensor, " B"]] = field(default_factory=dict)
    domain: Sequence[str] | None = None
    total_rows: int = 0
    task: Task = "classes"
    domain_rows: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        """Check that all tensors have the same number of rows; `total_rows` defaults to that number."""
        rows = len(self.ids)
        if self.total_rows <= 0:
            object.__setattr__(self, "total_rows", rows)
        if self.domain is not None and len(self.domain) != rows:
            raise ShapeError(f"batch: 'domain' names {len(self.domain)} rows, but there are {rows} sample ids")
        for name, tensor in self._tensors():
            if len(tensor) != rows:
                raise ShapeError(f"batch: {name!r} has {len(tensor)} rows, but there are {rows} sample ids")

    def __len__(self) -> int:
        """Rows of this batch (of this rank, of this micro-batch)."""
        return len(self.ids)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        tensors: list[tuple[str, Tensor]] = []
        for name, value in self.inputs.items():
            tensors += [(name, value)] if isinstance(value, Tensor) else [(f"{name}.{k}", v) for k, v in value.items()]
        optional = {"targets": self.targets, "labelled": self.labelled, "view": self.view}
        tensors += [(name, tensor) for name, tensor in optional.items() if tensor is not None]
        return tensors + [(f"present.{name}", mask) for name, mask in self.present.items()]

    def read(self, modality: str, who: str = "batch") -> Input:
        """The input of one modality.

        Raises:
            SignalError: the batch has no such modality; the message names the nearest.
        """
        if modality not in self.inputs:
            raise SignalError(
                f"{who} reads {modality!r}, which the data does not have; {nearest(modality, self.inputs)}"
            )
        return self.inputs[modality]

    def has_target(self) -> Bool[Tensor, " B"]:
        """Rows that have a target, whether or not the student may use it (dense targets: in any pixel)."""
        if self.targets is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.ids.device)
        known = ~self.targets.isnan() if self.targets.is_floating_point() else self.targets != MISSING_TARGET
        return known.flatten(1).any(1) if known.ndim > 1 else known

    def student_rows(self) -> Bool[Tensor, " B"]:
        """Rows whose target the student may use."""
        known = self.has_target()
        return known if self.labelled is None else known & self.labelled

    def rows_with(self, modalities: Sequence[str]) -> Bool[Tensor, " B"] | None:
        """Rows in which all of `modalities` are present; None when every row has them by construction."""
        masks = [self.present[name] for name in modalities if name in self.present]
        return torch.stack(masks).all(0) if masks else None

    def rows_with_any(self, modalities: Sequence[str]) -> Bool[Tensor, " B"] | None:
        """Rows in which at least one of `modalities` is present; None when every row has one by construction."""
        masks = [self.present[name] for name in modalities if name in self.present]
        return torch.stack(masks).any(0) if masks and len(masks) == len(modalities) else None

    def select(self, rows: Tensor) -> "Batch":
        """The batch of these rows alone (an index or a mask); `total_rows` does not change."""
        index = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return Batch(
            inputs={name: _rows_of(value, rows) for name, value in self.inputs.items()},
            ids=self.ids[rows],
            view=None if self.view is None else self.view[rows],
            targets=None if self.targets is None else self.targets[rows],
            labelled=None if self.labelled is None else self.labelled[rows],
            present={name: mask[rows] for name, mask in self.present.items()},
            domain=None if self.domain is None else [self.domain[i] for i in index.tolist()],
            total_rows=self.total_rows,
            task=self.task,
            domain_rows=self.domain_rows,
        )

    def rendered(self, name: str) -> "Batch":
        """The same rows with each modality replaced by its rendering `modality@name`, where there is one.

        Raises:
            SignalError: no modality has such a rendering.
        """
        renderings = {key.rpartition("@")[0]: value for key, value in self.inputs.items() if key.endswith(f"@{name}")}
        if not renderings:
            raise SignalError(f"no modality has the rendering {name!r}; the data has {', '.join(sorted(self.inputs))}")
        return replace(self, inputs={**self.inputs, **renderings})

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on another device."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})


def _rows_of(value: Input, rows: Tensor) -> Input:
    return value[rows] if isinstance(value, Tensor) else {name: part[rows] for name, part in value.items()}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
        # Pictures of files are channels last, which convolutions of accelerators do not gain from in float32.
        return moved if moved.device.type == "cpu" else moved.contiguous()
    return {name: _moved(part, device) for name, part in value.items()} if isinstance(value, Mapping) else value
