"""Augmentation: training rows in seeded views, so that what frozen networks give of them can be kept."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from crossdistill.data.row_random import RowRandom
from crossdistill.errors import ShapeError, nearest
from crossdistill.overrides import GROWS
from crossdistill.runtime.code_key import CodeKey, code_key
from crossdistill.runtime.hashing import derived_seed, key_hash

Inputs = Mapping[str, Tensor]


@runtime_checkable
class Augmentation(Protocol):
    """What makes the views of training rows.

    View 0 is the row as it is; validation and test rows are never seen otherwise. A training row is seen in another
    view in each epoch: out of views 1 to `views`, drawn from the seed, the epoch and its id, or a new one each time.
    """

    @property
    def views(self) -> int | None:
        """How many views a row has; None: without end, and nothing can be banked."""
        ...

    @property
    def key(self) -> str | None:
        """A text that is another one wherever the views would be; None where nothing can say that."""
        ...

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """The inputs of rows, in their views: a function of id and view alone, whatever stands beside it."""
        ...


class Variation(BaseModel):
    """How the rows of one modality are varied. Each number is the most that is done; how much is drawn evenly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: tuple[int, ...] = Field((), description="moved along its last dimensions by up to so many places")
    flip: bool = Field(False, description="mirrored along its last dimension, in about half of the views")
    mask: tuple[float, ...] = Field(
        (), description="up to this fraction of its last dimensions, in one piece of each, set to the row's mean"
    )
    gain: float = Field(0.0, ge=0, description="multiplied by 1 ± so much")
    noise: float = Field(0.0, ge=0, description="Gaussian noise of this standard deviation is added")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "hide" in value and "mask" not in value:
            warnings.warn("hide is called mask now; the old name goes with version 0.2", DeprecationWarning, 4)
            value = {("mask" if name == "hide" else name): own for name, own in value.items()}
        return value

    def model_post_init(self, context: Any) -> None:
        """Refuse amounts that cannot be.

        Raises:
            ValueError: a negative shift, or a fraction that is not in [0, 1].
        """
        if any(most < 0 for most in self.shift):
            raise ValueError(f"shift: wanted numbers of places of at least 0, found {list(self.shift)}")
        if any(not 0 <= most <= 1 for most in self.mask):
            raise ValueError(f"mask: wanted fractions in [0, 1], found {list(self.mask)}")

    def __call__(self, value: Tensor, draw: Callable[[str], RowRandom]) -> Tensor:
        """Rows (B, ...) varied; `draw` gives the random numbers for one kind of change."""
        if any(self.shift):
            value = _shifted(value, self.shift, draw("shift"))
        if self.flip:
            value = torch.where(_beside(draw("flip").uniform(1)[:, 0] < 0.5, value), value.flip(-1), value)
        if any(self.mask):
            # The name that draws had before the field was renamed: the same seed gives the same views.
            value = _masked(value, self.mask, draw("hide"))
        if self.gain:
            value = value * _beside(1 + self.gain * (2 * draw("gain").uniform(1)[:, 0] - 1), value).to(value.dtype)
        if self.noise:
            value = value + (self.noise * draw("noise").normal(*value.shape[1:])).to(value.dtype)
        return value

    def faults(self, modality: str, value: Tensor) -> list[str]:
        """Why rows like these cannot be varied so."""
        found = [
            f"{what} has {len(own)} numbers, but a row of {modality!r} has {value.ndim - 1} dimensions"
            for what, own in (("shift", self.shift), ("mask", self.mask))
            if len(own) > value.ndim - 1
        ]
        whole = not value.is_floating_point() and (self.gain or self.noise or any(self.mask))
        return found + ([f"gain, noise and mask are for fractions, and {modality!r} is {value.dtype}"] if whole else [])


class Variations(BaseModel):
    """Views of training rows, as settings: which modalities are varied, how, and in how many views."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: Mapping[str, Variation] = Field(
        default_factory=dict, description="by modality; none: rows as they are", json_schema_extra=GROWS
    )
    views: int | None = Field(
        None, ge=1, description="how many views a training row has, which can be banked; null: another in each epoch"
    )
    seed: int = Field(0, ge=0, description="draws the views")

    @property
    def key(self) -> str | None:
        """Its settings."""
        settings = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in self.inputs.items()}
        for one in settings.values():
            if "mask" in one:
                # Banks of before the field was renamed are found.
                one["hide"] = one.pop("mask")
        return key_hash(["variations", settings, self.views, self.seed])

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """Vary each modality by itself."""

        def varied(name: str, value: Tensor) -> Tensor:
            own = self.inputs.get(name)
            if own is None:
                return value
            return own(value, lambda what: RowRandom(derived_seed("view", self.seed, name, what), ids, view))

        return {name: varied(name, value) for name, value in inputs.items()}

    def faults(self, inputs: Inputs) -> list[str]:
        """Why these settings are not for such data: modalities that are not there, changes that do not fit."""
        if all(one == Variation() for one in self.inputs.values()):
            return [
                "augmentation: it has settings, but nothing is varied; set data.augmentation.inputs.MODALITY.CHANGE; "
                f"the modalities are {', '.join(inputs)}, the changes {', '.join(Variation.model_fields)}"
            ]
        strange = [name for name in self.inputs if name not in inputs]
        return [
            *(f"augmentation.inputs: the data have no {name!r}; {nearest(name, inputs)}" for name in strange),
            *(
                f"augmentation.inputs.{name}: {fault}"
                for name, one in self.inputs.items()
                if name in inputs
                for fault in one.faults(name, inputs[name])
            ),
        ]


@dataclass(frozen=True)
class OwnAugmentation:
    """A function of your own that makes views: `change(inputs, ids, view)`, for rows that are not view 0.

    It has to be a function of each row's id and view (seed a generator with them, or use `RowRandom`). Networks that
    look at it are banked where `views` is a number and everything that `change` reads can be keyed.
    """

    change: Callable[[Inputs, Tensor, Tensor], Inputs]
    views: int | None = None

    @property
    def key(self) -> str | None:
        """Its code, and everything that it reads; None where that cannot be keyed."""
        code = self.code()
        return None if code.faults else key_hash(["own", code.text(), self.views])

    def code(self) -> CodeKey:
        """The key of the function, with what cannot be keyed."""
        return code_key(change=self.change)

    def __call__(self, inputs: Inputs, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"]) -> Inputs:
        """What the function gives."""
        return self.change(inputs, ids, view)


def in_views(augmentation: Augmentation, inputs: Inputs, ids: Tensor, view: Tensor) -> Inputs:
    """Inputs of rows in their views; rows of view 0 stay as they are.

    Raises:
        ShapeError: the augmentation does not give each modality as it came; says which.
    """
    plain = view == 0
    if bool(plain.all()):
        return inputs
    changed = augmentation(inputs, ids, view)
    for name, value in inputs.items():
        found = _form(changed.get(name))
        if found != _form(value):
            raise ShapeError(
                f"augmentation: {name!r} came as {_form(value)} and has to stay that, but {found} came back; it has to "
                "give all rows of every modality that it is given, in their shape and type"
            )
    if not bool(plain.any()):
        return changed
    return {name: torch.where(_beside(plain, value), value, changed[name]) for name, value in inputs.items()}


def _form(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def drawn_views(augmentation: Augmentation, seed: int, epoch: int, ids: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """The views in which training rows are seen in an epoch: a function of the seed, the epoch and the id."""
    drawn = RowRandom(derived_seed("views", seed, epoch), ids).whole()
    return 1 + (drawn if augmentation.views is None else drawn % augmentation.views)


def _beside(row: Tensor, value: Tensor) -> Tensor:
    """One number a row, shaped to go with a tensor of rows."""
    return row.view(-1, *[1] * (value.ndim - 1))


def _shifted(value: Tensor, most: tuple[int, ...], random: RowRandom) -> Tensor:
    """Moved by whole places; what comes in from outside repeats the edge."""
    drawn = random.uniform(len(most))
    for number, own in enumerate(most):
        dimension = value.ndim - len(most) + number
        by = (drawn[:, number] * (2 * own + 1)).long() - own
        places = torch.arange(value.shape[dimension])
        index = (places - by[:, None]).clamp(0, value.shape[dimension] - 1)
        value = value.take_along_dim(_along(index, value, dimension), dimension)
    return value


def _masked(value: Tensor, most: tuple[float, ...], random: RowRandom) -> Tensor:
    drawn = random.uniform(len(most), 2)
    mean = _beside(value.flatten(1).mean(1), value)
    for number, own in enumerate(most):
        dimension = value.ndim - len(most) + number
        length = value.shape[dimension]
        size = drawn[:, number, 0] * own * length
        start = drawn[:, number, 1] * (length - size)
        places = torch.arange(length)
        inside = (places >= start[:, None]) & (places < (start + size)[:, None])
        value = torch.where(_along(inside, value, dimension), mean, value)
    return value


def _along(index: Tensor, value: Tensor, dimension: int) -> Tensor:
    """Numbers for each row and each place along one dimension, shaped to go with a tensor of rows."""
    shape = [1] * value.ndim
    shape[0], shape[dimension] = len(value), value.shape[dimension]
    return index.view(shape)
