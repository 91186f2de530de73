"""Pictures of 0 to 1 from the values of an input, and back, for augmentation before their normalisation."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.rendering import PictureRendering, rendering_of


def pictures_of(values: Tensor, spec: InputSpec) -> Float[Tensor, "B C H W"]:
    """Pictures of 0 to 1 without the normalisation of their preparation; bytes become fractions."""
    if not values.is_floating_point():
        return values / 255
    if isinstance(own := rendering_of(spec, "the picture"), PictureRendering):
        return _undone(own, values) / 255
    how = _normalisation(spec)
    if how["kind"] == "min-max":
        values = values * float(how["high"] - how["low"]) + float(how["low"])
    elif how["kind"] == "mean and standard deviation":
        values = values * float(how["deviation"]) + float(how["mean"])
    return values.clamp(0, 1)


def values_of(pictures: Float[Tensor, "B C H W"], spec: InputSpec, like: Tensor) -> Tensor:
    """The values of an input, of the type of `like`, from pictures of 0 to 1."""
    if not like.is_floating_point():
        return (pictures * 255).round().to(like.dtype)
    if isinstance(own := rendering_of(spec, "the picture"), PictureRendering):
        return own.model_copy(update={"size": tuple(pictures.shape[-2:]), "shortest": None}).apply(pictures * 255)
    how = _normalisation(spec)
    if how["kind"] == "min-max":
        return (pictures - float(how["low"])) / float(how["high"] - how["low"])
    if how["kind"] == "mean and standard deviation":
        return (pictures - float(how["mean"])) / float(how["deviation"])
    return pictures


def bytes_of(values: Tensor, spec: InputSpec) -> Tensor:
    """Pictures (B, C, H, W) of 0 to 255: without the normalisation that the data set's own preparation has applied."""
    pictures = values[:, None] if len(spec.shape) == 2 else values
    return pictures if not pictures.is_floating_point() else pictures_of(pictures, spec) * 255


def _undone(rendering: PictureRendering, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Rendered pictures as 0 to 255 again, at their size."""
    if rendering.deviation:
        values = values * torch.tensor(rendering.deviation)[:, None, None]
    if rendering.mean:
        values = values + torch.tensor(rendering.mean)[:, None, None]
    return (values / rendering.rescale).clamp(0, 255)


def _normalisation(spec: InputSpec) -> Mapping[str, Any]:
    how: Mapping[str, Any] = spec.options.get("normalisation") or {"kind": "none"}
    return how
