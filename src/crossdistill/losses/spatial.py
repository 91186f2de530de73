"""Conversion of features to maps (B, C, H, W) and vectors, and pooling of two maps to the same size."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def as_map(feature: Float[Tensor, "B *shape"]) -> Float[Tensor, "B C H W"]:
    """Channels first: (C,) -> (C, 1, 1), (C, T) -> (C, T, 1), (C, T, H, W) -> (C, T · H, W); maps are unchanged."""
    if feature.ndim <= 4:
        return feature.reshape(*feature.shape, *[1] * (4 - feature.ndim))
    return feature.flatten(2, -2)


def as_vector(feature: Float[Tensor, "B *shape"]) -> Float[Tensor, "B C"]:
    """The mean of each channel over all positions; vectors are unchanged."""
    return feature.flatten(2).mean(2) if feature.ndim > 2 else feature


def pooled_vector(feature: Float[Tensor, "B *shape"]) -> Float[Tensor, "B D"]:
    """All positions of all channels, after 2x2 max-pooling if both sides have two or more; vectors are unchanged."""
    whole = as_map(feature)
    return (functional.max_pool2d(whole, 2) if min(whole.shape[2:]) > 1 else whole).flatten(1)


def same_space(
    one: Float[Tensor, "B C H1 W1"], other: Float[Tensor, "B D H2 W2"]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B D H W"]]:
    """Both maps average-pooled to the smaller height and the smaller width, over cells of nearly equal size."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return _pooled(one, size), _pooled(other, size)


def _pooled(value: Tensor, size: tuple[int, int]) -> Tensor:
    return value if tuple(value.shape[2:]) == size else functional.adaptive_avg_pool2d(value, size)
