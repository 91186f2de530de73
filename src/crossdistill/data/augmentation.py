"""Augmentation: seeded views of training rows, so that outputs of frozen networks can be stored for each view."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data.mixed_views import Mix, drawn_mix
from crossdistill.data.picture_form import pictures_of, values_of
from crossdistill.data.picture_views import cropped, cut_out, parts, resized_parts
from crossdistill.data.rand_augment import rand_augmented, rotated
from crossdistill.data.row_random import RowRandom
from crossdistill.data.row_source import Rows
from crossdistill.errors import ShapeError, nearest
from crossdistill.overrides import GROWS
from crossdistill.runtime.code_key import CodeKey, code_key
from crossdistill.runtime.hashing import derived_seed, key_hash

Inputs = Mapping[str, Input]
Parts = Callable[[Float[Tensor, "B 2"]], Float[Tensor, "B 4"]]
"""From heights and widths of pictures to a part of each: top, left, height and width."""

PART = "resized_crop"
"""The random numbers of the parts of pictures."""
OF_PICTURES = ("resized_crop", "crop", "rotate", "rand_augment", "cutout")
"""Changes of pictures, before their normalisation."""


@runtime_checkable
class Augmentation(Protocol):
    """Makes the views of training rows.

    View 0 is the row without augmentation; validation and test rows have no other view. In each epoch, a training row
    has a view from 1 to `views`, drawn from the seed, the epoch and its id; or a new one if `views` is None.
    """

    @property
    def views(self) -> int | None:
        """The number of views of a row; None: unlimited, so outputs cannot be banked."""
        ...

    @property
    def key(self) -> str | None:
        """A text that differs whenever the views differ; None if there is no such text."""
        ...

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """The inputs of rows in their views: each row depends on its own values, id and view only."""
        ...


class Variation(BaseModel):
    """Augmentation of one modality. Each number is a largest amount; the amount is drawn uniformly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: tuple[int, ...] = Field((), description="moved along its last dimensions by up to so many places")
    flip: bool = Field(False, description="mirrored along its last dimension, in about half of the views")
    mask: tuple[float, ...] = Field(
        (), description="up to this fraction of its last dimensions, in one piece of each, set to the row's mean"
    )
    gain: float = Field(0.0, ge=0, description="multiplied by 1 ± so much")
    noise: float = Field(0.0, ge=0, description="Gaussian noise of this standard deviation is added")
    crop: int = Field(
        0, ge=0, description="of a picture: a part of its size is cut out of it with so many black pixels on every side"
    )
    resized_crop: float = Field(
        0.0, ge=0, le=1, description="of a picture: a part of at least this fraction of its area, resized; 0: the whole"
    )
    rotate: float = Field(0.0, ge=0, le=180, description="of a picture: turned by up to so many degrees, black outside")
    rand_augment: int = Field(0, ge=0, le=14, description="of a picture: so many of RandAugment's 14 operations")
    cutout: float = Field(
        0.0, ge=0, le=1, description="of a picture: a grey square is put on it, its side up to this fraction"
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "hide" in value and "mask" not in value:
            warnings.warn("hide is called mask now; the old name will be removed in version 0.2", DeprecationWarning, 4)
            value = {("mask" if name == "hide" else name): setting for name, setting in value.items()}
        return value

    def model_post_init(self, context: Any) -> None:
        """Check the amounts.

        Raises:
            ValueError: a negative shift, or a fraction that is not in [0, 1].
        """
        if any(most < 0 for most in self.shift):
            raise ValueError(f"shift: wanted numbers of places of at least 0, found {list(self.shift)}")
        if any(not 0 <= most <= 1 for most in self.mask):
            raise ValueError(f"mask: wanted fractions in [0, 1], found {list(self.mask)}")

    @property
    def of_pictures(self) -> bool:
        """Whether something changes pictures of 0 to 1, before their normalisation."""
        return bool(self.crop or self.resized_crop or self.rotate or self.rand_augment or self.cutout)

    def pictures(self, value: Float[Tensor, "B C H W"], draw: Callable[[str], RowRandom]) -> Float[Tensor, "B C H W"]:
        """Pictures of 0 to 1 in their views, as far as the changes are those of pictures."""
        if self.resized_crop:
            value = resized_parts(value, self.resized_crop, draw(PART))
        if self.crop:
            value = cropped(value, self.crop, draw("crop"))
        if self.rotate:
            value = rotated(value, self.rotate, draw("rotate"))
        if self.rand_augment:
            value = rand_augmented(value, self.rand_augment, draw("rand_augment"))
        return cut_out(value, self.cutout, draw("cutout")) if self.cutout else value

    def __call__(
        self, value: Tensor, draw: Callable[[str], RowRandom], spec: InputSpec | None = None, is_part: bool = False
    ) -> Tensor:
        """Augmented rows (B, ...); `draw` returns the random numbers for one kind of change.

        `spec` has the normalisation of pictures; without it, fractions are pictures of 0 to 1. `is_part`: the rows are
        resized parts already, cut out of larger files.
        """
        if is_part:
            return self.model_copy(update={"resized_crop": 0.0})(value, draw, spec)
        if self.of_pictures:
            form = spec or InputSpec("image", tuple(value.shape[1:]))
            value = values_of(self.pictures(pictures_of(value, form), draw), form, value)
        if any(self.shift):
            value = _shifted(value, self.shift, draw("shift"))
        if self.flip:
            value = torch.where(_beside(draw("flip").uniform(1)[:, 0] < 0.5, value), value.flip(-1), value)
        if any(self.mask):
            # "hide" is the former name of the field: with it, the same seed gives the same views as before.
            value = _masked(value, self.mask, draw("hide"))
        if self.gain:
            value = value * _beside(1 + self.gain * (2 * draw("gain").uniform(1)[:, 0] - 1), value).to(value.dtype)
        if self.noise:
            value = value + (self.noise * draw("noise").normal(*value.shape[1:])).to(value.dtype)
        return value

    def faults(self, modality: str, value: Rows) -> list[str]:
        """Reasons why rows of this shape and type cannot be augmented with these settings."""
        faults = [
            f"{what} has {len(amounts)} numbers, but a row of {modality!r} has {len(value.shape) - 1} dimensions"
            for what, amounts in (("shift", self.shift), ("mask", self.mask))
            if len(amounts) > len(value.shape) - 1
        ]
        if self.of_pictures and (len(value.shape) != 4 or value.shape[1] not in (1, 3)):
            changes = ", ".join(name for name in OF_PICTURES if getattr(self, name))
            shape = tuple(value.shape[1:])
            faults.append(f"{changes}: for pictures (1 or 3, height, width), and {modality!r} is {shape}")
        if not value.dtype.is_floating_point and (self.gain or self.noise or any(self.mask)):
            faults.append(f"gain, noise and mask are for fractions, and {modality!r} is {value.dtype}")
        return faults


class Variations(BaseModel):
    """Settings of an augmentation: the changes of each modality, and the number of views."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: Mapping[str, Variation] = Field(
        default_factory=dict, description="by modality; none: rows as they are", json_schema_extra=GROWS
    )
    views: int | None = Field(
        None, ge=1, description="how many views a training row has, which can be banked; null: another in each epoch"
    )
    seed: int = Field(0, ge=0, description="draws the views")
    mixup: float = Field(
        0.0, ge=0, description="each row is mixed with another one by parts of Beta(mixup, mixup), targets too; 0: not"
    )
    cutmix: float = Field(
        0.0, ge=0, description="each picture has a box of another one, its area by Beta(cutmix, cutmix), targets too"
    )
    mixed_targets: Literal["soft", "own"] = Field(
        "soft", description="of mixed rows: those of both by their parts; own: that of the larger part, the row itself"
    )
    _specs: Mapping[str, InputSpec] = PrivateAttr(default_factory=dict)
    _parts: frozenset[str] = PrivateAttr(default=frozenset())
    _derived: frozenset[str] = PrivateAttr(default=frozenset())

    def with_renderings(self, added: Mapping[str, Variation]) -> "Variations":
        """The same views, with the changes that renderings of a modality get at their size.

        These follow from the modality's own, so that `key` is that of data without the renderings: stored outputs of
        one network do not depend on which other networks the run has.
        """
        copy = self.model_copy(update={"inputs": {**self.inputs, **added}})
        copy._derived = self._derived | added.keys()
        return copy

    def reading(self, specs: Mapping[str, InputSpec], parts: Iterable[str] = ()) -> "Variations":
        """The same views of inputs in these formats: pictures are changed before their normalisation.

        `parts` are inputs whose rows are resized parts already.
        """
        copy = self.model_copy()
        copy._specs, copy._parts = specs, frozenset(parts)
        return copy

    @property
    def mixes(self) -> bool:
        """Whether rows are mixed with others."""
        return bool(self.mixup or self.cutmix)

    def mix(self, train: Int64[Tensor, " T"], ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Mix:
        """The other row and the parts of each row."""
        half = self.mixed_targets == "own"
        return drawn_mix(self.mixup, self.cutmix, seed=self.seed, train=train, ids=ids, view=view, at_least_half=half)

    def part_of(self, name: str, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Parts | None:
        """From sizes (B, 2) of the pictures of an input to their parts (B, 4) in these views; None: no parts."""
        variation = self.inputs.get(name)
        if variation is None or not variation.resized_crop:
            return None
        random = RowRandom(derived_seed("view", self.seed, name.partition("@")[0], PART), ids, view)
        return lambda sizes: parts(sizes, variation.resized_crop, random)

    @property
    def key(self) -> str | None:
        """A hash of the settings."""
        settings = {
            name: variation.model_dump(mode="json", exclude_defaults=True)
            for name, variation in self.inputs.items()
            if name not in self._derived
        }
        for setting in settings.values():
            if "mask" in setting:
                # The former name keeps the keys of banks that were filled before the field was renamed.
                setting["hide"] = setting.pop("mask")
        mix = [self.mixup, self.cutmix, self.mixed_targets] if self.mixes else []
        return key_hash(["variations", settings, self.views, self.seed, *mix])

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """Augment each modality separately."""

        def varied(name: str, value: Input) -> Input:
            variation = self.inputs.get(name)
            if variation is None:
                return value
            if not isinstance(value, Tensor):
                raise ShapeError(
                    f"augmentation.inputs.{name}: an input of several tensors ({', '.join(value)}) is varied by a "
                    "function of yours: OwnAugmentation"
                )
            # A rendering "image@clip" varies as its modality does.
            base = name.partition("@")[0]
            return variation(
                value,
                lambda what: RowRandom(derived_seed("view", self.seed, base, what), ids, view),
                self._specs.get(name),
                name in self._parts,
            )

        return {name: varied(name, value) for name, value in inputs.items()}

    def faults(self, inputs: Mapping[str, Rows]) -> list[str]:
        """Reasons why these settings do not fit these data: unknown modalities, changes that do not apply."""
        if all(variation == Variation() for variation in self.inputs.values()) and not self.mixes:
            return [
                "augmentation: it has settings, but nothing is varied; set data.augmentation.inputs.MODALITY.CHANGE; "
                f"the modalities are {', '.join(inputs)}, the changes {', '.join(Variation.model_fields)}"
            ]
        kind = "cutmix" if self.cutmix else "mixup"
        unmixed = [
            f"augmentation.{kind}: {name!r} is {value.dtype} {tuple(value.shape[1:])}; wanted fractions"
            f"{' of pictures (1 or 3, height, width)' if self.cutmix else ''} in every modality"
            for name, value in inputs.items()
            if self.mixes and not (value.dtype.is_floating_point and (len(value.shape) == 4 or not self.cutmix))
        ]
        unknown = [name for name in self.inputs if name not in inputs]
        return [
            *unmixed,
            *(f"augmentation.inputs: the data have no {name!r}; {nearest(name, inputs)}" for name in unknown),
            *(
                f"augmentation.inputs.{name}: {fault}"
                for name, variation in self.inputs.items()
                if name in inputs
                for fault in variation.faults(name, inputs[name])
            ),
        ]


@dataclass(frozen=True)
class OwnAugmentation:
    """A user's function `change(inputs, ids, view)` that makes views; it is not called for rows of view 0.

    Each row of its result has to depend on the row, its id and view only (seed a generator with them, or use
    `RowRandom`). Outputs for these inputs can be banked if `views` is a number and everything that `change` reads has a
    key.
    """

    change: Callable[[Inputs, Tensor, Tensor], Inputs]
    views: int | None = None

    @property
    def key(self) -> str | None:
        """A hash of the function's code and everything that it reads; None if some of that has no key."""
        code = self.code()
        return None if code.faults else key_hash(["own", code.text(), self.views])

    def code(self) -> CodeKey:
        """The key of the function, with the parts that have no key."""
        return code_key(change=self.change)

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """The function's result."""
        return self.change(inputs, ids, view)


def in_views(augmentation: Augmentation, inputs: Inputs, ids: Tensor, view: Tensor) -> Inputs:
    """Inputs of rows in their views; rows of view 0 are unchanged.

    Raises:
        ShapeError: the augmentation drops a modality or changes its shape or type; names it.
    """
    plain = view == 0
    if bool(plain.all()):
        return inputs
    changed = augmentation(inputs, ids, view)
    for name, value in inputs.items():
        returned = _form(changed.get(name))
        if returned != _form(value):
            raise ShapeError(
                f"augmentation: {name!r} is {_form(value)}, but {returned} came back; it has to return all rows of "
                "every modality in their shape and type"
            )
    if not bool(plain.any()):
        return changed
    return {name: _chosen(plain, value, changed[name]) for name, value in inputs.items()}


def _chosen(rows: Tensor, value: Input, other: Input) -> Input:
    """The first value in these rows, the other one in the rest."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.where(_beside(rows, value), value, other)
    assert isinstance(value, Mapping)
    assert isinstance(other, Mapping)
    return {part: torch.where(_beside(rows, value[part]), value[part], other[part]) for part in value}


def _form(value: Input | None) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {_form(tensor)}" for part, tensor in value.items())
    return "nothing" if value is None else f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def drawn_views(augmentation: Augmentation, seed: int, epoch: int, ids: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """The view of each training row in an epoch: a function of the seed, the epoch and the row's id."""
    drawn = RowRandom(derived_seed("views", seed, epoch), ids).whole()
    return 1 + (drawn if augmentation.views is None else drawn % augmentation.views)


def _beside(row: Tensor, value: Tensor) -> Tensor:
    """One number per row (B,), reshaped to broadcast with a tensor of rows."""
    return row.view(-1, *[1] * (value.ndim - 1))


def _shifted(value: Tensor, most: tuple[int, ...], random: RowRandom) -> Tensor:
    """Rows shifted by whole positions; the edge value is repeated."""
    drawn = random.uniform(len(most))
    for number, largest in enumerate(most):
        dimension = value.ndim - len(most) + number
        by = (drawn[:, number] * (2 * largest + 1)).long() - largest
        places = torch.arange(value.shape[dimension])
        index = (places - by[:, None]).clamp(0, value.shape[dimension] - 1)
        value = value.take_along_dim(_along(index, value, dimension), dimension)
    return value


def _masked(value: Tensor, most: tuple[float, ...], random: RowRandom) -> Tensor:
    drawn = random.uniform(len(most), 2)
    mean = _beside(value.flatten(1).mean(1), value)
    for number, largest in enumerate(most):
        dimension = value.ndim - len(most) + number
        length = value.shape[dimension]
        size = drawn[:, number, 0] * largest * length
        start = drawn[:, number, 1] * (length - size)
        places = torch.arange(length)
        inside = (places >= start[:, None]) & (places < (start + size)[:, None])
        value = torch.where(_along(inside, value, dimension), mean, value)
    return value


def _along(index: Tensor, value: Tensor, dimension: int) -> Tensor:
    """Values (B, length) along one dimension, reshaped to broadcast with a tensor of rows."""
    shape = [1] * value.ndim
    shape[0], shape[dimension] = len(value), value.shape[dimension]
    return index.view(shape)
