"""Dataset: paired rows of several modalities, their splits, and what each modality's tensor is."""

import hashlib
import json
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch, InputSpec
from crossdistill.data.augmentation import Augmentation, drawn_views, in_views
from crossdistill.data.split import check_splits, random_split
from crossdistill.errors import DataError, SettingError, ShapeError

ROWS_AT_ONCE = 4096
"""Rows that are read together when all of the data are looked at: bounds the memory that a mapped file takes."""


@dataclass(frozen=True, slots=True)
class Licence:
    """Where a part of the data comes from; `commercial`: whether its licence allows commercial use (None: unknown)."""

    name: str
    licence: str
    source: str
    commercial: bool | None


@dataclass(frozen=True)
class Dataset:
    """Paired data, in memory or memory-mapped; row i of every tensor belongs to the same example.

    `inputs` maps a modality to its tensor, examples first. `targets` hold `MISSING_TARGET` where an example has none;
    `labelled` marks the rows whose target the *student* may use (None: every row that has one). `present` says where a
    modality is there at all (an unlisted one always is); `domain` names each row's domain ("speech"). `groups` say
    which rows share a source ("voice", "handwriting"): rows of one group are not independent of each other.
    `fingerprint` changes with anything that changes the content; hiding labels does not, nor does `augmentation`, which
    makes views of training rows. `about` is one paragraph for reports.
    """

    name: str
    inputs: Mapping[str, Tensor]
    targets: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    splits: Mapping[str, Tensor]
    input_specs: Mapping[str, InputSpec]
    fingerprint: str
    labelled: Bool[Tensor, " N"] | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    domain: tuple[str, ...] | None = None
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    about: str = ""
    licences: tuple[Licence, ...] = ()
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            ShapeError: two parts have different numbers of rows, or a tensor is not what its specification says.
            DataError: a split is missing, empty, out of range or shares rows with another; a target names no class.
        """
        rows = len(self.targets)
        if not self.inputs:
            raise ShapeError(f"dataset {self.name!r} has no inputs; it needs at least one modality")
        described = {"labelled": self.labelled, **{f"present[{k!r}]": v for k, v in self.present.items()}}
        described |= {f"groups[{k!r}]": v for k, v in self.groups.items()}
        for what, tensor in {**self.inputs, **described}.items():
            if tensor is not None and len(tensor) != rows:
                raise ShapeError(f"dataset {self.name!r}: {what} has {len(tensor)} rows, but targets have {rows}")
        if self.domain is not None and len(self.domain) != rows:
            raise ShapeError(f"dataset {self.name!r}: domain has {len(self.domain)} rows, but targets have {rows}")
        if set(self.input_specs) != set(self.inputs):
            raise ShapeError(
                f"dataset {self.name!r}: input_specs describe {sorted(self.input_specs)}, "
                f"inputs are {sorted(self.inputs)}"
            )
        for modality, tensor in self.inputs.items():
            if tuple(tensor.shape[1:]) != tuple(self.input_specs[modality].shape):
                raise ShapeError(
                    f"dataset {self.name!r}: an example of {modality!r} has shape {tuple(tensor.shape[1:])}, "
                    f"but its specification says {tuple(self.input_specs[modality].shape)}"
                )
        check_splits(self.splits, rows, self.name)
        _check_targets(self.targets, self.classes, self.name)

    def __len__(self) -> int:
        """Rows of all splits together, and of those outside every split."""
        return len(self.targets)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        inputs: Mapping[str, Any],
        targets: Any = None,
        *,
        splits: Mapping[str, Any] | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        input_specs: Mapping[str, InputSpec] | None = None,
        present: Mapping[str, Any] | None = None,
        domain: Sequence[str] | None = None,
        labelled: Any = None,
        groups: Mapping[str, Any] | None = None,
        about: str = "",
        licences: Sequence[Licence] = (),
        augmentation: Augmentation | None = None,
    ) -> "Dataset":
        """A data set from your own arrays (numpy or torch), one per modality, examples first.

        Float64 becomes float32, which is what networks compute in; other types stay. `targets` are whole numbers, or
        class names, or None when no example has one; `MISSING_TARGET` (-100) marks an example without. Without
        `splits` 60 % of the rows train, 20 % validate and 20 % test, drawn by `seed`.

        Raises:
            ShapeError: the arrays have different numbers of rows; says which has how many.
            DataError: NaN or Inf in an example that is present (says which rows), or a target or split that cannot be.
        """
        tensors = {modality: _as_input(name, modality, value) for modality, value in inputs.items()}
        if not tensors:
            raise ShapeError(f"dataset {name!r} has no inputs; it needs at least one modality")
        counts = {modality: len(tensor) for modality, tensor in tensors.items()}
        if targets is not None:
            counts["targets"] = len(targets)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{what} {count}" for what, count in counts.items())
            raise ShapeError(
                f"dataset {name!r}: every array needs the same number of rows, one per example; found {found}"
            )
        rows = next(iter(counts.values()))
        numbers, names = _as_targets(name, targets, rows, classes)
        masks = {k: torch.as_tensor(np.asarray(v), dtype=torch.bool) for k, v in (present or {}).items()}
        specs = dict(input_specs or {})
        for modality, tensor in tensors.items():
            specs.setdefault(modality, InputSpec(kind="array", shape=tuple(tensor.shape[1:])))
        if splits is None:
            chosen = random_split(rows, seed)
        else:
            chosen = {split: torch.as_tensor(np.asarray(index)).to(torch.int64) for split, index in splits.items()}
        dataset = cls(
            name=name,
            inputs=tensors,
            targets=numbers,
            classes=names,
            splits=chosen,
            input_specs=specs,
            fingerprint="",
            labelled=None if labelled is None else torch.as_tensor(np.asarray(labelled), dtype=torch.bool),
            present=masks,
            domain=None if domain is None else tuple(domain),
            groups={k: torch.as_tensor(np.asarray(v)).to(torch.int64) for k, v in (groups or {}).items()},
            about=about,
            licences=tuple(licences),
            augmentation=augmentation,
        )
        check_finite(dataset)
        return replace(dataset, fingerprint=content_fingerprint(dataset))

    def batch(
        self,
        rows: Int64[Tensor, " B"],
        total_rows: int | None = None,
        only: Collection[str] | None = None,
        view: Int64[Tensor, " B"] | None = None,
    ) -> Batch:
        """These rows as one batch, fetched by index; sample ids are the row numbers.

        `total_rows` counts the rows of the whole optimizer step and defaults to those asked for. `only` names the
        modalities to fetch, where not all of them are read. `view` says in which view of the augmentation each row is
        wanted (None: as it is).
        """
        wanted = self.inputs if only is None else {name: self.inputs[name] for name in self.inputs if name in only}
        inputs: Mapping[str, Tensor] = {modality: tensor[rows] for modality, tensor in wanted.items()}
        if view is not None and self.augmentation is not None:
            inputs = in_views(self.augmentation, inputs, rows, view)
        return Batch(
            inputs=inputs,
            ids=rows,
            view=view,
            targets=self.targets[rows],
            labelled=None if self.labelled is None else self.labelled[rows],
            present={modality: mask[rows] for modality, mask in self.present.items()},
            domain=None if self.domain is None else _pick(self.domain, rows),
            total_rows=total_rows or len(rows),
        )

    def views(self, rows: Int64[Tensor, " B"], seed: int, epoch: int) -> Int64[Tensor, " B"] | None:
        """In which view training rows are seen in an epoch; None without augmentation."""
        return None if self.augmentation is None else drawn_views(self.augmentation, seed, epoch, rows)

    def example(self, rows: int = 2) -> Batch:
        """The first rows of the training split: enough to see shapes."""
        return self.batch(self.splits["train"][:rows])


def hide_labels(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Let the student keep this fraction of its training labels, stratified by class.

    Deterministic for a seed and nested: the rows kept at 0.05 are among those kept at 0.1. Every class keeps at least
    one row as long as the fraction amounts to one row per class. Validation and test rows keep theirs; teachers see
    every target whatever is hidden here, and the fingerprint stays what it was.

    Raises:
        SettingError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise SettingError(f"labelled: wanted a fraction in (0, 1], got {fraction}")
    if fraction == 1:
        return dataset
    train = dataset.splits["train"]
    before = torch.ones(len(dataset), dtype=torch.bool) if dataset.labelled is None else dataset.labelled
    usable = train[before[train] & (dataset.targets[train] != MISSING_TARGET)]
    kept = before.clone()
    kept[train] = False
    at_least = 1 if fraction * len(usable) >= len(dataset.classes) else 0
    for number in range(len(dataset.classes)):
        own = usable[dataset.targets[usable] == number].numpy()
        order = np.random.default_rng([seed, number]).permutation(np.sort(own))
        count = min(len(own), max(at_least, round(fraction * len(own))))
        kept[torch.from_numpy(order[:count])] = True
    # The content is what it was: stages that never see the hidden labels are shared with runs that hide none.
    return replace(dataset, labelled=kept)


def check_finite(dataset: Dataset) -> None:
    """Refuse NaN and Inf in examples that are present.

    Raises:
        DataError: names the modality and the first rows.
    """
    for modality, tensor in dataset.inputs.items():
        if not tensor.is_floating_point():
            continue
        bad: list[int] = []
        for start in range(0, len(tensor), ROWS_AT_ONCE):
            finite = tensor[start : start + ROWS_AT_ONCE].isfinite().flatten(1).all(1)
            if modality in dataset.present:
                finite |= ~dataset.present[modality][start : start + ROWS_AT_ONCE]
            bad += [start + row for row in (~finite).nonzero().flatten().tolist()]
        if bad:
            shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
            raise DataError(
                f"dataset {dataset.name!r}: {modality!r} holds NaN or Inf in {len(bad)} of {len(tensor)} rows: "
                f"{shown}; mend or drop them, or mark them absent with `present`"
            )


def content_fingerprint(dataset: Dataset) -> str:
    """sha256 over everything that a student could learn from or be measured on, and over how it is described."""
    digest = hashlib.sha256()

    def add(what: str, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        digest.update(f"{what} {tensor.dtype} {tuple(tensor.shape)};".encode())
        for start in range(0, len(tensor), ROWS_AT_ONCE):
            block = tensor[start : start + ROWS_AT_ONCE].contiguous()
            digest.update(block.view(torch.uint8).numpy().tobytes() if block.ndim else block.numpy().tobytes())

    digest.update(json.dumps([dataset.name, dataset.classes, dataset.domain]).encode())
    for kind, tensors in (("input", dataset.inputs), ("split", dataset.splits), ("present", dataset.present)):
        for name in sorted(tensors):
            add(f"{kind} {name}", tensors[name])
    add("targets", dataset.targets)
    add("labelled", dataset.labelled)
    for modality in sorted(dataset.input_specs):
        spec = dataset.input_specs[modality]
        digest.update(json.dumps([modality, spec.kind, list(spec.shape), dict(spec.options)], sort_keys=True).encode())
        for name in sorted(spec.parameters):
            add(f"parameter {modality} {name}", spec.parameters[name])
    return digest.hexdigest()


def _pick(names: tuple[str, ...], rows: Tensor) -> list[str]:
    index = rows.tolist()
    found = operator.itemgetter(*index)(names) if len(index) > 1 else tuple(names[i] for i in index)
    return list(found)


def _as_input(name: str, modality: str, value: Any) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except TypeError as error:
        raise DataError(f"dataset {name!r}: {modality!r} is not an array of numbers: {error}") from error
    if tensor.ndim < 2:
        raise ShapeError(
            f"dataset {name!r}: {modality!r} has shape {tuple(tensor.shape)}; wanted (examples, ...), "
            "at least two dimensions"
        )
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def _as_targets(
    name: str, targets: Any, rows: int, classes: Sequence[str] | None
) -> tuple[Int64[Tensor, " N"], tuple[str, ...]]:
    """Targets as numbers, and the class names: given, found among named targets, or counted up."""
    if targets is None:
        return torch.full((rows,), MISSING_TARGET, dtype=torch.int64), tuple(classes or ())
    values = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if values.ndim != 1:
        raise ShapeError(f"dataset {name!r}: targets have shape {values.shape}; wanted (examples,)")
    if values.dtype.kind in "US":
        found = sorted(set(values.tolist()))
        names = tuple(classes) if classes is not None else tuple(found)
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise DataError(f"dataset {name!r}: targets {unknown} are not among the classes {list(names)}")
        number = {label: i for i, label in enumerate(names)}
        return torch.tensor([number[label] for label in values.tolist()], dtype=torch.int64), names
    if values.dtype.kind not in "iu":
        raise DataError(
            f"dataset {name!r}: targets are {values.dtype}; wanted whole numbers or class names, "
            f"and {MISSING_TARGET} where an example has none"
        )
    numbers = torch.as_tensor(values.astype(np.int64))
    known = numbers[numbers != MISSING_TARGET]
    if classes is None:
        classes = [str(number) for number in range(int(known.max()) + 1 if len(known) else 0)]
    return numbers, tuple(classes)


def _check_targets(targets: Tensor, classes: tuple[str, ...], name: str) -> None:
    wrong = ((targets != MISSING_TARGET) & ((targets < 0) | (targets >= len(classes)))).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"dataset {name!r}: {len(wrong)} targets name no class, first in row {row}: {int(targets[row])}; "
            f"wanted 0 to {len(classes) - 1}, or {MISSING_TARGET} for none"
        )
