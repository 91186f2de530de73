"""Data sets over those of other libraries: PyTorch's, Hugging Face's, and tar shards as WebDataset writes them."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, InputSpec
from crossdistill.data.arrays import as_array
from crossdistill.data.content import OnProgress, quiet
from crossdistill.data.item_rows import LABELS, TARGET, Collate, Column, ItemRows, Items, parts_of, source_of
from crossdistill.data.item_scan import scanned
from crossdistill.data.rendering import Rendering
from crossdistill.data.row_source import named_row, said
from crossdistill.data.split import SPLITS
from crossdistill.data.tar_shards import TarShards, shard_paths
from crossdistill.data.variable_length import Length, Padded
from crossdistill.data.workers import Workers
from crossdistill.errors import CrossdistillError, DataError, MissingExtraError, SettingError, nearest
from crossdistill.runtime.hashing import bytes_hash

Made = TypeVar("Made")
Make = Callable[..., Made]
"""`Dataset.from_arrays`."""


def from_torch(
    make: Make[Made],
    name: str,
    dataset: Any,
    columns: Mapping[str, Column] | None = None,
    *,
    collate: Collate | None = None,
    renderings: Mapping[str, Rendering] | None = None,
    lengths: Mapping[str, Length] | None = None,
    targets: Any = None,
    key: str | None = None,
    deterministic: bool = True,
    workers: int | None = None,
    progress: OnProgress | None = None,
    **settings: Any,
) -> Made:
    """A data set over a map-style `torch.utils.data.Dataset`, whose items are read by workers when steps need them.

    Args:
        make: `Dataset.from_arrays`.
        name: for reports and errors.
        dataset: anything with `__getitem__` and `__len__`. Items are tuples or mappings of tensors, arrays, numbers and
            Pillow's pictures.
        columns: modality -> position or name in an item ("" for the whole item); "target" is the class. By default the
            names of a mapping.
        collate: makes a batch, a mapping of tensors or of mappings of tensors, of a list of items; `columns` name its
            parts.
        renderings: modality -> a rendering of its pictures, recordings or texts.
        lengths: modality -> what becomes of rows of different lengths: `Padded()` or `Cropped(length=...)`.
        targets: the class of each row; by default the dataset's attribute `targets` or `labels`, else those of all
            items.
        key: a text that names the content of the rows. Without it all rows are read once and hashed.
        deterministic: False for items that differ whenever they are read; needs a key.
        workers: number of processes; 0 reads rows in this process.
        progress: called with the progress of reading.
        settings: of `Dataset.from_arrays`, such as `splits`, `groups`, `classes` and `augmentation`.

    Raises:
        DataError: a row cannot be read, or differs when it is read again.
        ShapeError: rows of one modality have different shapes.
        SettingError: a column does not exist, or the settings contradict each other.
    """
    processes = Workers(workers)
    present = settings.get("present")
    sources, targets = item_rows(
        name,
        dataset,
        columns,
        collate=collate,
        renderings=renderings,
        lengths=lengths,
        targets=targets,
        key=key,
        deterministic=deterministic,
        present=present,
        workers=processes,
        progress=progress,
    )
    known = getattr(dataset, "classes", None)
    if settings.get("classes") is None and isinstance(known, list | tuple) and all(isinstance(c, str) for c in known):
        settings["classes"] = known if targets is not None else None
    made: Any = make(name, sources, targets, progress=progress, **settings)
    made.workers.wanted = workers
    return cast(Made, made)


def from_huggingface(
    make: Make[Made], name: str, dataset: Any, columns: Mapping[str, Column] | None = None, **settings: Any
) -> Made:
    """A data set over a Hugging Face `datasets.Dataset`, or over a folder that its `save_to_disk` wrote.

    Columns, targets and class names are found by the dataset's features: the first `ClassLabel`, or a column named
    "label", is the target. The content is known by a hash of the Arrow table, so no row is decoded at the start. A
    dictionary of splits has to have "train", "validation" and "test". Settings are those of `from_torch`.

    Raises:
        MissingExtraError: a folder was given, and the package datasets is not installed.
        DataError: it has other splits, or no rows by number.
    """
    where = f"dataset {name!r}"
    if isinstance(dataset, str | Path):
        try:
            load_from_disk = importlib.import_module("datasets").load_from_disk
        except ImportError as error:
            raise MissingExtraError("opening a saved dataset", "datasets", "datasets") from error
        dataset = load_from_disk(str(dataset))
    if isinstance(dataset, Mapping):
        if set(dataset) != set(SPLITS):
            raise DataError(
                f"{where}: its splits are {', '.join(dataset)}; wanted {', '.join(SPLITS)}, or one of them, "
                "dataset['train'], which is then split"
            )
        ends = np.cumsum([len(dataset[split]) for split in SPLITS])
        settings["splits"] = {
            split: np.arange(end - len(dataset[split]), end) for split, end in zip(SPLITS, ends, strict=True)
        }
        dataset = importlib.import_module("datasets").concatenate_datasets([dataset[split] for split in SPLITS])
    features = getattr(dataset, "features", None)
    if features is None or not hasattr(dataset, "data"):
        raise DataError(f"{where}: a {type(dataset).__name__} has no rows by number; wanted a datasets.Dataset")
    if columns is None:
        label = next((key for key in features if hasattr(features[key], "names")), None)
        label = label or next((key for key in LABELS if key in features), None)
        columns = {TARGET if key == label else key: key for key in features}
    target = columns.get(TARGET)
    if target in features and settings.get("targets") is None:
        values = np.asarray(dataset.with_format("numpy", columns=[target])[:][target])
        names = getattr(features[target], "names", None)
        if names is not None:
            settings.setdefault("classes", tuple(names))
            values = np.where(values < 0, MISSING_TARGET, values)
        settings["targets"] = values
    if settings.get("key") is None:
        settings["key"] = _arrow_hash(where, dataset, [str(column) for column in columns.values()])
    return from_torch(make, name, dataset, columns, **settings)


def from_shards(
    make: Make[Made], name: str, paths: Any, columns: Mapping[str, Column] | None = None, **settings: Any
) -> Made:
    """A data set over tar shards as WebDataset writes them: a folder, a path with wildcards, or a list of paths.

    `columns` map modalities to extensions: {"image": "jpg", "target": "cls"}. A sample without the file of a modality
    lacks that modality. The content is known by a hash of the shards. Settings are those of `from_torch`.

    Raises:
        DataError: a shard cannot be read, or no sample has a column.
    """
    where = f"dataset {name!r}"
    shards = TarShards(shard_paths(paths, where), where)
    if columns is None:
        columns = {TARGET if key == "cls" else key: key for key in shards.extensions}
    for modality, column in columns.items():
        if column not in shards.extensions:
            raise SettingError(f"{where}: columns[{modality!r}]: {nearest(str(column), shards.extensions)}")
    target = columns.get(TARGET)
    if target is not None and settings.get("targets") is None:
        has = shards.has(str(target))
        rows = range(len(shards))
        settings["targets"] = [shards.value(row, str(target)) if has[row] else MISSING_TARGET for row in rows]
    present = {m: shards.has(str(column)) for m, column in columns.items() if m != TARGET}
    lacking = {modality: mask for modality, mask in present.items() if not mask.all()}
    if lacking:
        settings["present"] = lacking | settings.get("present", {})
    settings.setdefault("key", shards.key())
    return from_torch(make, name, shards, columns, **settings)


def _arrow_hash(where: str, dataset: Any, columns: list[str]) -> str:
    """A hash of the buffers of an Arrow table and of the choice of its rows."""
    if dataset.format["type"] == "custom":
        raise SettingError(
            f"{where}: its rows go through a function (set_transform), which has no hash; pass key=, a text that names "
            "the content of the rows, or use map() instead"
        )
    digest = hashlib.sha256(f"{columns} {dataset.format} {dataset.features}".encode())
    tables = [dataset.data.table.select([name for name in columns if name in dataset.data.table.column_names])]
    tables += [] if dataset._indices is None else [dataset._indices.table]
    for table in tables:
        for column in table.columns:
            for chunk in column.chunks:
                digest.update(f"{chunk.type} {chunk.offset} {len(chunk)};".encode())
                for buffer in chunk.buffers():
                    if buffer is not None:
                        digest.update(memoryview(buffer))
    return digest.hexdigest()


def item_rows(
    name: str,
    dataset: Any,
    columns: Mapping[str, Column] | None = None,
    *,
    collate: Collate | None = None,
    renderings: Mapping[str, Rendering] | None = None,
    lengths: Mapping[str, Length] | None = None,
    targets: Any = None,
    key: str | None = None,
    deterministic: bool = True,
    present: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
    progress: OnProgress | None = None,
) -> tuple[dict[str, ItemRows], Any]:
    """Row sources over the columns of a map-style dataset, and its targets; see `Dataset.from_torch`.

    Raises:
        DataError: a row cannot be read, or differs when it is read again.
        ShapeError: rows of one column have different shapes.
        SettingError: a column does not exist, or the settings contradict each other.
    """
    where = f"dataset {name!r}"
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(
            f"{where}: a {type(dataset).__name__} has no rows by number; wanted a map-style dataset, with "
            "__getitem__ and __len__ (of an iterable one: list(dataset), or its shards, Dataset.from_shards)"
        )
    if not len(dataset):
        raise DataError(f"{where}: the {type(dataset).__name__} is empty")
    items = Items(dataset, collate)
    first = _read(items, torch.zeros(1, dtype=torch.int64), where)
    chosen = _columns(where, first if collate is not None else first[0], columns)
    target = chosen.pop(TARGET, None)
    for what, mapping in (("renderings", renderings), ("lengths", lengths)):
        for modality in mapping or {}:
            if modality not in chosen:
                raise SettingError(f"{where}: {what} name {modality!r}; {nearest(modality, chosen)}")
    sources = {}
    for modality, column in chosen.items():
        rendering, length = (renderings or {}).get(modality), (lengths or {}).get(modality)
        there = _rows_there(items, (present or {}).get(modality))
        source = source_of(items, column, there, f"{where}: {modality!r}", rendering, length)
        source.deterministic = deterministic
        sources[modality] = source
    if deterministic:
        _check_repeatable(where, items, sources)
    elif key is None:
        raise SettingError(f"{where}: deterministic=False needs key=, a text that names the content of the rows")
    if targets is None and target is not None:
        targets = _known_targets(dataset)
    scan = key is None or (targets is None and target is not None) or any(s.length for s in sources.values())
    found = scanned(name, items, sources, target, workers or Workers(), progress or quiet) if scan else None
    for modality, source in sources.items():
        source.content = key if key is not None else bytes_hash(found.digests[modality].tobytes()) if found else ""
        if found is not None and deterministic:
            source.digests = found.digests[modality]
        if source.length is not None and found is not None:
            known = found.lengths[modality]
            source.lengths = known if isinstance(source.length, Padded) else None
            longest = source.length.shape((int(known.max()), *source.spec.shape[1:]))
            source.spec = InputSpec(source.spec.kind, longest, source.spec.options, source.spec.parameters)
    return sources, found.targets if targets is None and found is not None else targets


def _read(items: Items, rows: Tensor, where: str) -> Any:
    try:
        return items.take(rows)
    except CrossdistillError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise DataError(f"{where}: row {int(rows[0])} cannot be read: {said(error)}") from error


def _columns(where: str, item: Any, columns: Mapping[str, Column] | None) -> dict[str, Column]:
    """The columns by modality, checked against the first item."""
    names: list[Column]
    if isinstance(item, Mapping):
        names = list(item)
    elif isinstance(item, tuple | list):
        names = list(range(len(item)))
    else:
        names = []
    if columns is None:
        if isinstance(item, Mapping):
            label = next((name for name in LABELS if name in item), None)
            return {TARGET if name == label else str(name): name for name in names}
        what = f"{len(names)} parts" if names else f"a {type(item).__name__}"
        example = '{"image": 0, "target": 1}' if names else '{"image": ""}'
        raise SettingError(f"{where}: an item is {what} without names; name them, such as columns={example}")
    for modality, column in columns.items():
        if column != "" and column not in names:
            known = ", ".join(repr(name) for name in names) or "none (the whole item is '')"
            raise SettingError(f"{where}: columns[{modality!r}] is {column!r}, and an item has {known}")
    if not set(columns) - {TARGET}:
        raise SettingError(f"{where}: columns name no input")
    return dict(columns)


def _rows_there(items: Items, present: Any) -> Int64[Tensor, " R"]:
    """The rows in which a modality is present."""
    mask = np.ones(len(items), bool) if present is None else as_array(present, "present").astype(bool)
    return torch.from_numpy(np.flatnonzero(mask))


def _check_repeatable(where: str, items: Items, sources: Mapping[str, ItemRows]) -> None:
    for name, source in sources.items():
        row = source.there[-1:]
        seen = []
        for _ in range(2):
            items.forget()
            seen.append(parts_of(source.fetch(row)))
        one, other = seen
        if not all(torch.equal(one[part], other[part]) for part in one if part in other):
            raise DataError(
                f"{where}: {name!r} of {named_row(source, int(row))} differs when it is read again, as with random "
                "transforms; use augmentation= instead, whose views can be stored, or pass deterministic=False and key="
            )


def _known_targets(dataset: Any) -> Any:
    """The targets that a dataset lists for all its rows; None if it lists none, or changes them."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, list | tuple | np.ndarray | Tensor) and len(values) == len(dataset):
            return values
    return None
