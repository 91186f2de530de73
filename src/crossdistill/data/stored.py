"""Writes a data set as a folder of arrays, and opens it, memory-mapped."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.cache import digest_of
from crossdistill.data.content import check_finite
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.row_source import tensors_in_memory
from crossdistill.data.split import SPLITS
from crossdistill.data.targets import TargetScale

DESCRIPTION = "dataset.json"
MAPPED_BYTES = 2**27
"""Arrays from this size on are memory-mapped."""


def store(folder: Path, dataset: Dataset) -> None:
    """Write a data set; an input file that exists already (`input.<modality>.npy`, built in blocks) is kept.

    Raises:
        DataError: an example holds NaN or Inf.
    """
    check_finite(dataset.name, dataset.inputs, dataset.present)
    for kind, tensors in _tensors(dataset).items():
        for name, tensor in tensors.items():
            path = folder / f"{kind}.{name}.npy"
            if not path.exists():
                np.save(path, tensor.numpy())
    description: dict[str, Any] = {
        "name": dataset.name,
        "classes": dataset.classes,
        "about": dataset.about,
        "licences": [asdict(licence) for licence in dataset.licences],
        "specs": {
            modality: {"kind": spec.kind, "shape": spec.shape, "options": dict(spec.options)}
            for modality, spec in dataset.input_specs.items()
        },
    }
    if dataset.task != "classes":
        description["task"] = dataset.task
        description["scale"] = None if dataset.scale is None else asdict(dataset.scale)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")


def open_stored(folder: Path) -> Dataset:
    """The data set that `store` wrote to a folder of the cache."""
    content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    parameters = _read(folder, "parameter")
    splits = _read(folder, "split")
    specs = {
        modality: InputSpec(
            kind=spec["kind"],
            shape=tuple(spec["shape"]),
            options=spec["options"],
            parameters={k.partition(".")[2]: v for k, v in parameters.items() if k.partition(".")[0] == modality},
        )
        for modality, spec in content["specs"].items()
    }
    return Dataset(
        name=content["name"],
        inputs=_read(folder, "input"),
        targets=_read(folder, "rows")["targets"],
        classes=tuple(content["classes"]),
        splits={split: splits[split] for split in SPLITS},
        input_specs=specs,
        fingerprint=digest_of(folder),
        groups=_read(folder, "group"),
        about=content["about"],
        licences=tuple(Licence(**licence) for licence in content["licences"]),
        task=content.get("task", "classes"),
        scale=_scale(content.get("scale")),
    )


def _scale(plain: Mapping[str, Any] | None) -> TargetScale | None:
    return None if plain is None else TargetScale(tuple(plain["mean"]), tuple(plain["deviation"]))


def map_array(path: Path) -> Tensor:
    """An array on disk as a tensor; from `MAPPED_BYTES` on, rows are read when they are used."""
    # Copy on write, because torch warns of tensors over read-only mappings.
    large = path.stat().st_size >= MAPPED_BYTES
    return torch.from_numpy(np.load(path, mmap_mode="c" if large else None, allow_pickle=False))


def _tensors(dataset: Dataset) -> dict[str, Mapping[str, Tensor]]:
    parameters: dict[str, Any] = {
        f"{modality}.{name}": tensor
        for modality, spec in dataset.input_specs.items()
        for name, tensor in spec.parameters.items()
    }
    return {
        "input": tensors_in_memory(dataset.inputs, f"dataset {dataset.name!r}"),
        "rows": {"targets": dataset.targets},
        "split": dataset.splits,
        "group": dataset.groups,
        "parameter": parameters,
    }


def _read(folder: Path, kind: str) -> dict[str, Tensor]:
    return {path.name[len(kind) + 1 : -4]: map_array(path) for path in sorted(folder.glob(f"{kind}.*.npy"))}
