"""Renderings of modalities in memory, computed for the rows of each batch, after their augmentation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.augmentation import Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.picture_form import bytes_of
from crossdistill.data.rendering import PictureRendering, Rendering, rendering_of
from crossdistill.errors import DataError, nearest
from crossdistill.runtime.hashing import key_hash


@dataclass(frozen=True, eq=False)
class Rendered:
    """A row source: a rendering of pictures that are in memory."""

    base: str
    """The modality that is rendered."""
    values: Tensor
    source: InputSpec
    """The format of `values`."""
    rendering: PictureRendering
    dtype: torch.dtype = torch.float32
    deterministic: bool = True
    in_memory: bool = True
    """Rows are computed in the main process, from the views of `base`."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, channels, height, width)."""
        return (len(self.values), *self.rendering.shape)

    @property
    def spec(self) -> InputSpec:
        """The format of a rendered example."""
        return self.rendering.spec(self.rendering.shape)

    @property
    def fingerprint(self) -> str:
        """A hash of the preparation; the content is a part of the data set's own fingerprint."""
        return key_hash([self.base, self.rendering.key])

    def fetch(self, rows: Tensor) -> Tensor:
        """Rendered rows, without augmentation."""
        return self.apply(self.values[rows])

    def apply(self, values: Tensor) -> Tensor:
        """Rendered rows from (augmented) rows of the base."""
        return self.rendering.apply(bytes_of(values, self.source))


def rendered(dataset: Dataset, renderings: Mapping[str, Rendering], who: str) -> Dataset:
    """The data set with further inputs, such as "image@clip", each a rendering of the modality before the "@".

    Raises:
        DataError: there is no such modality, or its values cannot be rendered; says why.
    """
    inputs: dict[str, Any] = dict(dataset.inputs)
    specs, present = dict(dataset.input_specs), dict(dataset.present)
    for name, rendering in renderings.items():
        base = name.partition("@")[0]
        if base not in inputs:
            raise DataError(
                f"{who} reads {base!r}, which data {dataset.name!r} does not have; {nearest(base, dataset.inputs)}"
            )
        source: Any = inputs[base]
        if hasattr(source, "rendered"):
            inputs[name] = source.rendered(rendering)
        else:
            inputs[name] = _in_memory(base, source, specs[base], rendering, f"{who} (data {dataset.name!r})")
        specs[name] = inputs[name].spec
        if base in present:
            present[name] = present[base]
    made = replace(dataset, inputs=inputs, input_specs=specs, present=present)
    if isinstance(made.augmentation, Variations):
        return replace(made, augmentation=_with_renderings(made.augmentation, made, renderings))
    return made


def _with_renderings(augmentation: Variations, dataset: Dataset, names: Iterable[str]) -> Variations:
    """The augmentation, with the changes of a modality for its renderings from files too, at their size.

    Both have the same random numbers, so that a picture is mirrored in all its renderings, or in none.
    """
    added = {}
    for name in names:
        base = name.partition("@")[0]
        variation, source = augmentation.inputs.get(base), dataset.inputs[name]
        size, size_of_base = dataset.input_specs[name].shape, dataset.input_specs[base].shape
        if variation is None or hasattr(source, "base") or len(size) != len(size_of_base):
            continue
        sides = zip(variation.shift, size[-len(variation.shift) :], size_of_base[-len(variation.shift) :], strict=True)
        shift = tuple(round(most * side / before) for most, side, before in sides) if variation.shift else ()
        crop = round(variation.crop * size[-1] / size_of_base[-1])
        added[name] = variation.model_copy(update={"shift": shift, "crop": crop})
    return augmentation.with_renderings(added) if added else augmentation


def renderings_of(specs: Mapping[str, InputSpec], dataset: Dataset) -> dict[str, Rendering]:
    """The renderings among some inputs, such as those of a saved student, that the data set does not have yet."""
    found = {name: rendering_of(spec, name) for name, spec in specs.items() if name not in dataset.inputs}
    return {name: rendering for name, rendering in found.items() if rendering is not None and "@" in name}


def _in_memory(base: str, values: Any, spec: InputSpec, rendering: Rendering, who: str) -> Rendered:
    if not isinstance(rendering, PictureRendering):
        raise DataError(
            f"{who} reads {rendering.input_kind}, prepared by itself from files, and {base!r} is {spec.kind!r} of "
            f"shape {tuple(spec.shape)} in memory; give the data as files (a table or a folder)"
        )
    shape = tuple(spec.shape)
    if spec.kind != "image" or not isinstance(values, Tensor) or not _is_picture(shape):
        raise DataError(
            f"{who} reads pictures (1 or 3, height, width) in a known range, and {base!r} is {spec.kind!r} of shape "
            f"{shape}; say so by InputSpec(kind='image', shape=...) with values in [0, 1] or bytes, or name another "
            "input by `reads`"
        )
    first = values[:64]
    if values.is_floating_point() and spec.options.get("normalisation") is None and float(first.max()) > 1.5:
        raise DataError(
            f"{who} reads pictures, and {base!r} holds numbers up to {float(first.max()):g}: floating-point pictures "
            "are in [0, 1] here; divide them by 255, or keep them as bytes"
        )
    return Rendered(base, values, spec, rendering)


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
