"""The rows of a batch in their views: resized parts of files, changes of each row, and rows mixed with others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Int64
from torch import Tensor, cat, channels_last

from crossdistill.batch import Batch, Input
from crossdistill.data.augmentation import Variations, in_views
from crossdistill.data.mixed_views import Mix, mixed, mixed_targets, with_counted_parts
from crossdistill.data.workers import Ready, Request

if TYPE_CHECKING:
    from crossdistill.data.dataset import Dataset


def mix_of(dataset: "Dataset", rows: Int64[Tensor, " B"], view: Int64[Tensor, " B"] | None) -> Mix | None:
    """The mix of rows in their views; None where rows are not mixed."""
    augmentation = dataset.augmentation
    if view is None or not isinstance(augmentation, Variations) or not augmentation.mixes or not bool(view.any()):
        return None
    return augmentation.mix(dataset.splits["train"], rows, view)


def with_others(dataset: "Dataset", request: Request) -> Request:
    """A request that also reads the rows that its own are mixed with."""
    mix = mix_of(dataset, request.rows, request.view)
    if mix is None or request.view is None:
        return request
    count = len(request.rows)
    rows, view = cat([request.rows, mix.other]), cat([request.view, request.view])
    return Request(rows, request.total_rows or count, request.only, view, others=count)


def split_ready(ready: Ready | None, count: int) -> tuple[Ready | None, Ready | None]:
    """What workers have read: of the rows themselves, and of the `count` rows that they are mixed with."""
    if ready is None or not count:
        return ready, None

    def cut(value: Input, own: bool) -> Input:
        if isinstance(value, Tensor):
            return value[:-count] if own else value[-count:]
        return {name: part[:-count] if own else part[-count:] for name, part in value.items()}

    return (
        {name: cut(value, True) for name, value in ready.items()},
        {name: cut(value, False) for name, value in ready.items()},
    )


def viewed(
    dataset: "Dataset",
    inputs: Mapping[str, Input],
    rows: Int64[Tensor, " B"],
    view: Int64[Tensor, " B"],
    others: Ready | None = None,
) -> dict[str, Input]:
    """Inputs in their views; a rendering of a modality in memory is computed from that modality's view.

    `others` holds inputs that workers have read of the rows that these are mixed with.
    """
    made: dict[str, Any] = {name: dataset.inputs[name] for name in inputs if hasattr(dataset.inputs[name], "base")}
    plain = {name: value for name, value in inputs.items() if name not in made}
    plain |= {one.base: dataset.read(one.base, rows, view) for one in made.values() if one.base not in plain}
    changed = dict(_changed(dataset, plain, rows, view))
    mix = mix_of(dataset, rows, view)
    if mix is not None:
        there = {
            name: others[name] if others and name in others else dataset.read(name, mix.other, view) for name in changed
        }
        for name, value in _changed(dataset, there, mix.other, view).items():
            own = changed[name]
            assert isinstance(own, Tensor)
            assert isinstance(value, Tensor)
            changed[name] = mixed(own, value, mix)
    made_of = {name: one.apply(changed[one.base]) for name, one in made.items()}
    return {name: _as_read(inputs[name], made_of[name] if name in made else changed[name]) for name in inputs}


def _as_read(before: Input, value: Input) -> Input:
    """Changed pictures in the order in memory that they were read in: channels last, from files."""
    if not (isinstance(before, Tensor) and isinstance(value, Tensor) and before.ndim == value.ndim == 4):
        return value
    last = before.is_contiguous(memory_format=channels_last) and not before.is_contiguous()
    return value.contiguous(memory_format=channels_last) if last else value


def with_mixed_targets(dataset: "Dataset", batch: Batch) -> Batch:
    """A training batch with the targets of both rows; the student may use those whose both targets it has."""
    augmentation = dataset.augmentation
    mix = mix_of(dataset, batch.ids, batch.view)
    if mix is None or not isinstance(augmentation, Variations) or augmentation.mixed_targets == "own":
        return batch
    assert batch.targets is not None
    if augmentation.cutmix:
        # The modalities of several sizes have boxes of nearly equal parts; the first counts.
        mix = with_counted_parts(mix, *next(iter(dataset.input_specs.values())).shape[-2:])
    targets = mixed_targets(batch.targets, dataset.targets[mix.other], mix, len(dataset.classes))
    labelled = batch.labelled if batch.labelled is None else batch.labelled & _labelled(dataset, mix)
    return replace(batch, targets=targets, labelled=labelled, task="soft")


def _labelled(dataset: "Dataset", mix: Mix) -> Tensor:
    assert dataset.labelled is not None
    return dataset.labelled[mix.other] | (mix.part == 1)


def _changed(
    dataset: "Dataset", inputs: Mapping[str, Input], rows: Int64[Tensor, " B"], view: Int64[Tensor, " B"]
) -> Mapping[str, Input]:
    augmentation = dataset.augmentation
    assert augmentation is not None
    if isinstance(augmentation, Variations):
        parts = [name for name in inputs if hasattr(dataset.inputs[name], "in_parts")]
        augmentation = augmentation.reading(dataset.input_specs, parts)
    return in_views(augmentation, inputs, rows, view)
