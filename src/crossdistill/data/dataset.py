"""Dataset: paired rows of several modalities, their splits, and what each modality's tensor is."""

import logging
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch, InputSpec
from crossdistill.data.arrays import as_domain, as_groups, as_input, as_mask, as_rows, check_lengths, length_of
from crossdistill.data.augmentation import Augmentation, Variations, drawn_views, in_views
from crossdistill.data.content import OnProgress, content_sample, hash_content
from crossdistill.data.input_options import check_described
from crossdistill.data.labels import as_targets
from crossdistill.data.remarks import described, remarks
from crossdistill.data.split import check_splits, default_split
from crossdistill.errors import DataError, SettingError, ShapeError, nearest

log = logging.getLogger("crossdistill")


@dataclass(frozen=True, slots=True)
class Licence:
    """Where a part of the data comes from; `commercial`: whether its licence allows commercial use (None: unknown)."""

    name: str
    licence: str
    source: str
    commercial: bool | None


@dataclass(frozen=True, repr=False)
class Dataset:
    """Paired data, in memory or memory-mapped; row i of every tensor belongs to the same example.

    `inputs` maps a modality to its tensor, examples first. `targets` hold `MISSING_TARGET` where an example has none;
    `labelled` marks the rows whose target the *student* may use (None: every row that has one). `present` says where a
    modality is there at all (an unlisted one always is); `domain` names each row's domain ("speech"). `groups` say
    which rows share a source ("voice", "handwriting"): rows of one group are not independent of each other.
    `fingerprint` changes with anything that changes the content; hiding labels does not, nor does `augmentation`, which
    makes views of training rows. `sample` is a hash of (some of) the values that `fingerprint` was made of, where it
    was made of them: see `check_unchanged`. `about` is one paragraph for reports; `how_split` says how splits were
    drawn, where they were.
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
    how_split: str = ""
    sample: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            ShapeError: two parts have different numbers of rows, or a tensor is not what its specification says.
            DataError: a split is missing, empty, out of range or shares rows with another; a target names no class.
        """
        rows = len(self.targets)
        if not self.inputs:
            raise ShapeError(f"dataset {self.name!r} has no inputs; it needs at least one modality")
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
                        f"dataset {self.name!r}: {what} is {mask.dtype} {tuple(mask.shape)}; wanted one bool a row"
                    )
        for field_name in ("present", "input_specs"):
            for modality in set(getattr(self, field_name)) - set(self.inputs):
                raise DataError(
                    f"dataset {self.name!r}: {field_name} speaks of {modality!r}, which is no modality here; "
                    f"{nearest(modality, self.inputs)}"
                )
        if set(self.input_specs) != set(self.inputs):
            lacking = sorted(set(self.inputs) - set(self.input_specs))
            raise ShapeError(f"dataset {self.name!r}: input_specs describe no {', '.join(map(repr, lacking))}")
        for modality, tensor in self.inputs.items():
            if tuple(tensor.shape[1:]) != tuple(self.input_specs[modality].shape):
                raise ShapeError(
                    f"dataset {self.name!r}: an example of {modality!r} has shape {tuple(tensor.shape[1:])}, "
                    f"but its specification says {tuple(self.input_specs[modality].shape)}"
                )
        check_described(self.classes, self.input_specs, f"dataset {self.name!r}")
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
    ) -> "Dataset":
        """A data set from your own arrays (numpy, torch, pandas, nested lists), one per modality, examples first.

        Float64 becomes float32, which is what networks compute in; other types stay. `targets` are whole numbers from 0
        on, class names, truth values, or None when no example has one; `MISSING_TARGET` (-100) marks one without.
        Where some ids never occur, `classes` has to say what they mean: the ids that are classes, which are numbered in
        that order, or the names of all. `labelled` and `present` are true or false for each row, `groups` ids or names.

        Without `splits` 60 % of each class train, 20 % validate and 20 % test, drawn by `seed`, whole groups together
        (`default_split`). What is odd with the data is logged, and said by every run. `progress` is told how far
        reading is; without it, large data show a bar on a terminal.

        Raises:
            ShapeError: the arrays have different numbers of rows; says which has how many.
            DataError: NaN or Inf in an example that is present (says which rows), a target, split or name that cannot
                be, or groups that leave no way to split.
            SettingError: the augmentation does not fit the inputs.
        """
        tensors = {modality: as_input(name, modality, value) for modality, value in inputs.items()}
        rows = _rows_of(name, tensors, {"targets": targets, "domain": domain}, {"present": present, "groups": groups})
        numbers, names = as_targets(name, targets, rows, classes)
        specs = dict(input_specs or {})
        for modality, tensor in tensors.items():
            specs.setdefault(modality, InputSpec(kind="array", shape=tuple(tensor.shape[1:])))
        ids = {kind: as_groups(name, kind, value, rows) for kind, value in (groups or {}).items()}
        if splits is None:
            _check_targets(numbers, names, name)
            chosen, how = default_split(name, numbers, ids, seed)
        else:
            chosen, how = {split: as_rows(name, split, index, rows) for split, index in splits.items()}, ""
        dataset = cls(
            name=name,
            inputs=tensors,
            targets=numbers,
            classes=names,
            splits=chosen,
            input_specs=specs,
            fingerprint="",
            labelled=None if labelled is None else as_mask(name, "labelled", labelled, rows),
            present={k: as_mask(name, f"present[{k!r}]", v, rows) for k, v in (present or {}).items()},
            domain=None if domain is None else as_domain(name, domain),
            groups=ids,
            about=about,
            licences=tuple(licences),
            augmentation=augmentation,
            how_split=how,
        )
        faults = augmentation.faults(tensors) if isinstance(augmentation, Variations) else []
        if faults:
            raise SettingError(f"dataset {name!r}: {'; '.join(faults)}")
        dataset = replace(dataset, fingerprint=content_fingerprint(dataset, progress), sample=dataset._sample())
        for remark in dataset.remarks():
            log.warning("dataset %r: %s", name, remark)
        return dataset

    def check_unchanged(self) -> None:
        """Hold the values against those that the fingerprint was made of; of large arrays, rows all across them.

        Arrays are not copied, so that a program may change them after it has made a data set of them.

        Raises:
            DataError: they are others by now, so that results would be taken for those of other data.
        """
        if self.sample and self.sample != self._sample():
            raise DataError(
                f"dataset {self.name!r}: its arrays hold other values than when it was made of them, and the keys of "
                "what is kept of runs say the values of then; make it again with Dataset.from_arrays (of a copy, where "
                "the program goes on to change its arrays in place)"
            )

    def _sample(self) -> str:
        return content_sample(self.inputs, self.present, self.splits, self.targets)

    def remarks(self) -> tuple[str, ...]:
        """What is odd with these data, one sentence each: classes that are missing, groups in two splits."""
        return remarks(self.targets, self.classes, self.splits, self.groups, self.labelled)

    def __repr__(self) -> str:
        """A few lines: rows, modalities, classes, splits, groups, memory, and what is odd."""
        return described(
            self.name,
            self.inputs,
            self.targets,
            self.classes,
            self.splits,
            groups=self.groups,
            labelled=self.labelled,
            present=self.present,
            how_split=self.how_split,
            remarks=self.remarks(),
        )

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
        inputs: Mapping[str, Tensor] = {modality: _fetched(tensor, rows) for modality, tensor in wanted.items()}
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


def content_fingerprint(dataset: Dataset, progress: OnProgress | None = None) -> str:
    """sha256 over everything that a student could learn from or be measured on, and over how it is described.

    Raises:
        DataError: NaN or Inf in an example that is present; names the modality and the first rows.
    """
    return hash_content(
        dataset.name,
        dataset.inputs,
        dataset.present,
        dataset.splits,
        dataset.input_specs,
        {"targets": dataset.targets, "labelled": dataset.labelled},
        dataset.classes,
        dataset.domain,
        progress,
    )


def _rows_of(
    name: str, tensors: Mapping[str, Tensor], single: Mapping[str, Any], several: Mapping[str, Mapping[str, Any] | None]
) -> int:
    """The number of rows, which all arrays have; `labelled` may be a list of row numbers, and says so itself."""
    if not tensors:
        raise ShapeError(f"dataset {name!r} has no inputs; it needs at least one modality")
    rowwise = dict(single)
    for kind, arrays in several.items():
        rowwise |= {f"{kind}[{key!r}]": values for key, values in (arrays or {}).items()}
    lengths = {modality: len(tensor) for modality, tensor in tensors.items()}
    for what, values in rowwise.items():
        if values is not None:
            lengths[what] = length_of(values, f"dataset {name!r}: {what}")
    check_lengths(name, lengths)
    return next(iter(lengths.values()))


def _fetched(tensor: Tensor, rows: Int64[Tensor, " B"]) -> Tensor:
    if tensor.dtype == torch.uint16:
        # PyTorch before 2.7 takes no rows of this type; the bits are those of a signed one.
        return tensor.view(torch.int16)[rows].view(torch.uint16)
    return tensor[rows]


def _pick(names: tuple[str, ...], rows: Tensor) -> list[str]:
    index = rows.tolist()
    found = operator.itemgetter(*index)(names) if len(index) > 1 else tuple(names[i] for i in index)
    return list(found)


def _check_targets(targets: Tensor, classes: tuple[str, ...], name: str) -> None:
    wrong = ((targets != MISSING_TARGET) & ((targets < 0) | (targets >= len(classes)))).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        known = targets[targets != MISSING_TARGET]
        from_one = int(known.min()) == 1 and int(known.max()) == len(classes)
        raise DataError(
            f"dataset {name!r}: {len(wrong)} targets name no class, first in row {row}: {int(targets[row])}; "
            f"wanted 0 to {len(classes) - 1}, or {MISSING_TARGET} for none"
            + ("; they count from 1: subtract 1" if from_one else "")
        )


def visible(dataset: Dataset) -> Tensor:
    """Which rows have a target that the student may use."""
    known = dataset.targets != MISSING_TARGET
    return known if dataset.labelled is None else known & dataset.labelled
