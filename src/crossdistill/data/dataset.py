"""Dataset: paired rows of several modalities, their targets and splits, and the format of each modality."""

import logging
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crossdistill.batch import Batch, Input, InputSpec, Task
from crossdistill.data.arrays import as_domain, as_groups, as_inputs, as_mask, as_rows, rows_of
from crossdistill.data.augmentation import Augmentation, Variations, drawn_views
from crossdistill.data.content import OnProgress, content_sample, hash_content
from crossdistill.data.domain_mix import DomainMix
from crossdistill.data.input_options import check_described
from crossdistill.data.other_datasets import from_huggingface, from_shards, from_torch
from crossdistill.data.remarks import described, remarks
from crossdistill.data.row_source import Rows, checked, read_by_workers, read_rows, sources_in
from crossdistill.data.split import check_splits
from crossdistill.data.targets import (
    TargetScale,
    check_targets,
    has_target,
    hashed_kind,
    read_targets,
    scale_of,
    split_evenly,
)
from crossdistill.data.views import split_ready, viewed, with_mixed_targets, with_others
from crossdistill.data.workers import Ready, Request, Workers
from crossdistill.errors import DataError, SettingError, ShapeError, nearest

log = logging.getLogger("crossdistill")


@dataclass(frozen=True, slots=True)
class Licence:
    """Source and licence of a part of the data; `commercial`: whether it allows commercial use (None: unknown)."""

    name: str
    licence: str
    source: str
    commercial: bool | None


@dataclass(frozen=True, repr=False)
class Dataset:
    """Paired data, in memory, memory-mapped or read row by row; row i of each modality belongs to the same example.

    Attributes:
        inputs: modality -> tensor (N, ...), or a row source, whose rows are read when a batch needs them.
        targets: class of each row, `MISSING_TARGET` for a row without one; for other tasks (N, C), NaN where missing.
        classes: names of the classes 0, 1, ..., or of the columns of `targets`.
        splits: "train", "validation", "test" -> row numbers.
        input_specs: modality -> shape and format of an example.
        fingerprint: a hash of the content, part of the keys of stages and banks. `hide_labels` and `augmentation` do
            not change it. "" before it is computed.
        labelled: mask (N,) of the rows whose target the *student* may use (None: every row that has one); teachers use
            all targets.
        present: modality -> mask (N,) of the rows in which it is present; a modality without an entry is in all rows.
        domain: the domain of each row, such as "speech"; `mix` says how many of each a training batch has.
        groups: kind ("voice", "handwriting") -> group of each row. Rows of one group share a source, so they are not
            independent.
        about: one paragraph for reports.
        licences: of the parts of the data.
        augmentation: makes views of training rows.
        how_split: how the splits were drawn, if the library drew them.
        task: the kind of the targets.
        scale: for a regression, how batches have the targets standardised; None: as they are.
        workers: the processes that read the rows of sources.
        sample: a hash of some of the values at the time when `fingerprint` was computed; see `check_unchanged`.
    """

    name: str
    inputs: Mapping[str, Rows]
    targets: Int64[Tensor, " N"] | Float[Tensor, "N C"]
    classes: tuple[str, ...]
    splits: Mapping[str, Tensor]
    input_specs: Mapping[str, InputSpec]
    fingerprint: str
    labelled: Bool[Tensor, " N"] | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    domain: tuple[str, ...] | None = None
    mix: DomainMix | None = None
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    about: str = ""
    licences: tuple[Licence, ...] = ()
    augmentation: Augmentation | None = None
    how_split: str = ""
    task: Task = "classes"
    scale: TargetScale | None = None
    workers: Workers = field(default_factory=Workers, compare=False)
    sample: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that rows, shapes, splits and targets are consistent.

        Raises:
            ShapeError: two parts have different numbers of rows, or a tensor has another shape than its specification.
            DataError: a split is missing, empty, out of range or shares rows with another; a target is no class.
        """
        for modality, source in sources_in(self.inputs).items():
            checked(source, f"dataset {self.name!r}: {modality!r}")
        rows = len(self.targets)
        if not self.inputs:
            raise ShapeError(f"dataset {self.name!r} has no inputs; it needs at least one modality")
        self._check_rows(rows)
        self._check_specs()
        check_described(self.classes, self.input_specs, f"dataset {self.name!r}")
        check_splits(self.splits, rows, self.name, tested=self.task != "none")
        check_targets(self.targets, self.classes, self.task, self.name)

    def _check_rows(self, rows: int) -> None:
        """Check that every tensor has this number of rows, and that masks are of booleans."""
        rowwise: dict[str, Any] = {**self.inputs, "labelled": self.labelled, "domain": self.domain}
        rowwise |= {f"present[{k!r}]": v for k, v in self.present.items()}
        rowwise |= {f"groups[{k!r}]": v for k, v in self.groups.items()}
        for what, values in rowwise.items():
            if values is not None and len(values) != rows:
                raise ShapeError(f"dataset {self.name!r}: {what} has {len(values)} rows, but targets have {rows}")
        for what, masks in (("labelled", [self.labelled]), ("present", self.present.values())):
            for mask in masks:
                if mask is not None and (mask.dtype, mask.ndim) != (torch.bool, 1):
                    raise DataError(
                        f"dataset {self.name!r}: {what} is {mask.dtype} {tuple(mask.shape)}; wanted one bool per row"
                    )

    def _check_specs(self) -> None:
        """Check that every modality has a specification of its shape, and that no other modality is named."""
        for field_name in ("present", "input_specs"):
            for modality in set(getattr(self, field_name)) - set(self.inputs):
                raise DataError(
                    f"dataset {self.name!r}: {field_name} names {modality!r}, which is not a modality of it; "
                    f"{nearest(modality, self.inputs)}"
                )
        if set(self.input_specs) != set(self.inputs):
            lacking = sorted(set(self.inputs) - set(self.input_specs))
            raise ShapeError(f"dataset {self.name!r}: input_specs lack {', '.join(map(repr, lacking))}")
        for modality, tensor in self.inputs.items():
            if tuple(tensor.shape[1:]) != tuple(self.input_specs[modality].shape):
                raise ShapeError(
                    f"dataset {self.name!r}: an example of {modality!r} has shape {tuple(tensor.shape[1:])}, "
                    f"but its specification has {tuple(self.input_specs[modality].shape)}"
                )

    def __len__(self) -> int:
        """Number of rows, those outside all splits included."""
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
        classes: Iterable[Any] | None = None,
        input_specs: Mapping[str, InputSpec] | None = None,
        present: Mapping[str, Any] | None = None,
        domain: Iterable[Any] | None = None,
        labelled: Any = None,
        groups: Mapping[str, Any] | None = None,
        about: str = "",
        licences: Sequence[Licence] = (),
        augmentation: Augmentation | None = None,
        progress: OnProgress | None = None,
        task: Task | None = None,
        standardise: bool = True,
    ) -> "Dataset":
        """A data set from your own arrays (numpy, torch, pandas, nested lists) and row sources.

        Irregularities of the data are logged, and shown by every run.

        Args:
            name: for reports and errors.
            inputs: modality -> array, one example per row, or a `RowSource`. float64 becomes float32; other types stay.
            targets: integers from 0 on, class names, booleans, or None for unlabelled data; `MISSING_TARGET` (-100)
                marks a row without a target. With a `task`: for "multi-label" rows (N, C) of 0 and 1 or a list of names
                for each row, for "regression" one or more numbers, for "soft" rows that sum to 1; NaN where missing.
            splits: "train", "validation", "test" -> row numbers or a boolean mask. By default 60 % of each class are
                for training, 20 % for validation and 20 % for the test, with groups kept together (`default_split`).
            seed: of the default splits.
            classes: the names of all classes, or the ids that are classes, in their order. Required if some ids between
                0 and the largest never occur.
            input_specs: modality -> format; by default the shape of its array.
            present: modality -> boolean for each row: whether it is present.
            domain: a name for each row.
            labelled: boolean for each row, or row numbers: whether the student may use its target.
            groups: kind -> id or name for each row.
            about: one paragraph for reports.
            licences: of the parts of the data.
            augmentation: makes views of training rows.
            progress: called with the progress of reading; by default large data show a bar on a terminal.
            task: the kind of the targets; by default one class a row, and other arrays are refused.
            standardise: for a regression, networks learn numbers standardised on the training split; predictions are
                given back in the unit. False: networks give the unit itself, as those of another library may.

        Raises:
            ShapeError: the arrays have different numbers of rows; lists them.
            DataError: NaN or Inf in an example that is present (lists rows); an invalid target, split or name; or
                groups that cannot be split.
            SettingError: the augmentation does not fit the inputs.
        """
        tensors = as_inputs(name, inputs)
        rows = rows_of(name, tensors, {"targets": targets, "domain": domain}, {"present": present, "groups": groups})
        numbers, names, task = read_targets(name, targets, rows, classes, task)
        specs = {
            modality: InputSpec("array", tuple(value.shape[1:])) if isinstance(value, Tensor) else value.spec
            for modality, value in tensors.items()
        } | dict(input_specs or {})
        ids = {kind: as_groups(name, kind, value, rows) for kind, value in (groups or {}).items()}
        if splits is None:
            chosen, how = split_evenly(name, numbers, names, task, ids, seed)
        else:
            chosen, how = {split: as_rows(name, split, index, rows) for split, index in splits.items()}, ""
        dataset = cls(
            name=name,
            inputs=tensors,
            targets=numbers,
            classes=names,
            splits=chosen,
            input_specs=specs,
            fingerprint="",  # computed below, from the checked data
            labelled=None if labelled is None else as_mask(name, "labelled", labelled, rows),
            present={k: as_mask(name, f"present[{k!r}]", v, rows) for k, v in (present or {}).items()},
            domain=None if domain is None else as_domain(name, domain),
            groups=ids,
            about=about,
            licences=tuple(licences),
            augmentation=augmentation,
            how_split=how,
            task=task,
            scale=scale_of(name, numbers, names, chosen["train"]) if task == "regression" and standardise else None,
        )
        if isinstance(augmentation, Variations) and (faults := augmentation.faults(tensors)):
            raise SettingError(f"dataset {name!r}: {'; '.join(faults)}")
        dataset = replace(dataset, fingerprint=content_fingerprint(dataset, progress), sample=dataset._sample())
        for remark in dataset.remarks():
            log.warning("dataset %r: %s", name, remark)
        return dataset

    @classmethod
    def from_torch(cls, name: str, dataset: Any, columns: Any = None, **settings: Any) -> "Dataset":
        """Over a map-style `torch.utils.data.Dataset`, read when steps need its rows; see `data.other_datasets`."""
        return from_torch(cls.from_arrays, name, dataset, columns, **settings)

    @classmethod
    def from_huggingface(cls, name: str, dataset: Any, columns: Any = None, **settings: Any) -> "Dataset":
        """Over a Hugging Face `datasets.Dataset`, read when steps need its rows; see `data.other_datasets`."""
        return from_huggingface(cls.from_arrays, name, dataset, columns, **settings)

    @classmethod
    def from_shards(cls, name: str, paths: Any, columns: Any = None, **settings: Any) -> "Dataset":
        """Over tar shards (WebDataset), read when steps need their rows; see `data.other_datasets`."""
        return from_shards(cls.from_arrays, name, paths, columns, **settings)

    def check_unchanged(self) -> None:
        """Compare the values with those that the fingerprint was computed from; a sample of rows for large arrays.

        Arrays are not copied, so a program may change them after it has made a data set from them.

        Raises:
            DataError: they have changed, so results would be stored under the fingerprint of other data.
        """
        for source in sources_in(self.inputs).values():
            if callable(check := getattr(source, "check_unchanged", None)):
                check()
        if self.sample and self.sample != self._sample():
            raise DataError(
                f"dataset {self.name!r}: its arrays hold other values than when it was made, so its fingerprint is "
                "wrong; make it again with Dataset.from_arrays (from a copy, if the program keeps changing its arrays "
                "in place)"
            )

    def _sample(self) -> str:
        return content_sample(self.inputs, self.present, self.splits, self.targets)

    def remarks(self) -> tuple[str, ...]:
        """Irregularities of the data, one sentence each: missing classes, groups in two splits."""
        return remarks(self.targets, self.classes, self.splits, self.groups, self.labelled, self.task)

    def __repr__(self) -> str:
        """A few lines: rows, modalities, classes, splits, groups, memory, and irregularities."""
        return described(self)

    def learnt(self, rows: Int64[Tensor, " B"]) -> Tensor:
        """The targets of some rows as networks learn them: those of a regression are standardised."""
        targets = self.targets[rows]
        return targets if self.scale is None else self.scale.standardised(targets)

    def batch(
        self,
        rows: Int64[Tensor, " B"],
        total_rows: int | None = None,
        only: Collection[str] | None = None,
        view: Int64[Tensor, " B"] | None = None,
        ready: Ready | None = None,
        others: Ready | None = None,
    ) -> Batch:
        """The given rows as one batch; their sample ids are the row numbers.

        `total_rows` is the number of rows of the whole optimizer step (default: of this batch). `only` names the
        modalities to fetch (default: all). `view` is the augmented view of each row (None: no augmentation). `ready`
        holds inputs of these rows that workers have read, `others` those of rows that these are mixed with.
        """
        inputs = dict(ready or {})
        for name in self.inputs:
            if name not in inputs and (only is None or name in only):
                inputs[name] = self.read(name, rows, view)
        inputs = {name: inputs[name] for name in self.inputs if name in inputs}
        if view is not None and self.augmentation is not None:
            inputs = viewed(self, inputs, rows, view, others)
        batch = Batch(
            inputs=inputs,
            ids=rows,
            view=view,
            targets=self.learnt(rows),
            labelled=None if self.labelled is None else self.labelled[rows],
            present={modality: mask[rows] for modality, mask in self.present.items()},
            domain=None if self.domain is None else _select_names(self.domain, rows),
            total_rows=total_rows or len(rows),
            task=self.task,
        )
        return with_mixed_targets(self, batch)

    def batches(self, requests: Iterable[Request], device: torch.device) -> Iterator[Batch]:
        """The batches of some requests on a device, in their order; workers read the rows of sources ahead.

        Raises:
            DataError: a row cannot be read, or a worker died; names the row.
        """

        def batch(request: Request, ready: Ready | None) -> Batch:
            own, others = split_ready(ready, request.others)
            end = len(request.rows) - request.others
            view = None if request.view is None else request.view[:end]
            more = {} if own is None else {"ready": own, "others": others}
            return self.batch(request.rows[:end], request.total_rows, request.only, view, **more).to(device)

        who, pinned = f"dataset {self.name!r}", device.type == "cuda"
        requests = (with_others(self, request) for request in requests)
        return self.workers.batches(requests, read_by_workers(self.inputs), self.read, batch, who, pinned)

    def facts(self) -> list[str]:
        """Lines that a run begins with: who reads the rows, how the splits were drawn, irregularities."""
        read = self.workers.note(read_by_workers(self.inputs))
        return [line for line in (self.how_split, *self.remarks(), read) if line]

    def read(self, modality: str, rows: Int64[Tensor, " B"], view: Int64[Tensor, " B"] | None = None) -> Input:
        """The input of some rows without augmentation; of pictures in files, the part that belongs to the `view`."""
        where, source = f"dataset {self.name!r}: {modality!r}", self.inputs[modality]
        if view is not None and isinstance(self.augmentation, Variations) and hasattr(source, "in_parts"):
            parts = self.augmentation.part_of(modality, rows, view)
            source = source if parts is None else source.in_parts(rows, view, parts)
        source = source.in_view(view) if view is not None and hasattr(source, "in_view") else source
        return read_rows(source, rows, where, self.present.get(modality))

    def views(self, rows: Int64[Tensor, " B"], seed: int, epoch: int) -> Int64[Tensor, " B"] | None:
        """The augmented view of each training row in an epoch; None without augmentation."""
        return None if self.augmentation is None else drawn_views(self.augmentation, seed, epoch, rows)

    def example(self, rows: int = 2) -> Batch:
        """The first rows of the training split, for shapes."""
        return self.batch(self.splits["train"][:rows])


def content_fingerprint(dataset: Dataset, progress: OnProgress | None = None) -> str:
    """SHA-256 over all data that training or evaluation can depend on, and over their specifications.

    Raises:
        DataError: NaN or Inf in an example that is present; names the modality and the first rows.
    """
    return hash_content(
        dataset.name,
        dataset.inputs,
        dataset.present,
        dataset.splits,
        dataset.input_specs,
        {"targets": dataset.targets, "labelled": dataset.labelled, **hashed_kind(dataset.task, dataset.scale)},
        dataset.classes,
        dataset.domain,
        progress,
    )


def _select_names(names: tuple[str, ...], rows: Tensor) -> list[str]:
    index = rows.tolist()
    # itemgetter of one index returns an item, not a tuple.
    return list(operator.itemgetter(*index)(names)) if len(index) > 1 else [names[i] for i in index]


def rows_with_label(dataset: Dataset) -> Tensor:
    """A mask (N,) of the rows that have a target which the student may use."""
    known = has_target(dataset.targets)
    return known if dataset.labelled is None else known & dataset.labelled
