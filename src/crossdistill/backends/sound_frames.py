"""Padded batches of sound: valid frames of convolutions, and group normalisation over the valid frames of each row."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def conv_frames(lengths: Int64[Tensor, " B"], kernels: Sequence[int], strides: Sequence[int]) -> Int64[Tensor, " B"]:
    """Frames that unpadded convolutions compute from the samples of each row alone: floor((n - k) / s) + 1 for each.

    A row that is shorter than the receptive field has 0 frames.
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp(min=0)


def frames_of(model: nn.Module, lengths: Int64[Tensor, " B"]) -> Int64[Tensor, " B"] | None:
    """Valid frames at each block of a model of transformers that reads waves; None: its blocks have another rule."""
    config: Any = model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    # SEW joins frames before its blocks.
    if not isinstance(kernels, list | tuple) or not isinstance(strides, list | tuple):
        return None
    if len(kernels) != len(strides) or getattr(config, "squeeze_factor", 1) != 1:
        return None
    return conv_frames(lengths, kernels, strides)


def mean_of_frames(states: Float[Tensor, "B T D"], frames: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """The mean over the first `frames` of each row; zeros for a row without frames."""
    valid = torch.arange(states.shape[1], device=states.device) < frames[:, None]
    return states.masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1).to(states.dtype)


@contextmanager
def normalised_by_row(model: nn.Module, lengths: Int64[Tensor, " B"] | None) -> Iterator[None]:
    """Within it, the group normalisation after the first convolution takes its statistics over valid frames.

    Over a padded row they would depend on the longest row of the batch. Without `lengths`, nothing changes.
    """
    if lengths is None:
        yield
        return
    with ExitStack() as hooks:
        for layer in model.modules():
            norm, conv = getattr(layer, "layer_norm", None), getattr(layer, "conv", None)
            # Only the first convolution reads samples; the others of these models have no group normalisation.
            if isinstance(norm, nn.GroupNorm) and isinstance(conv, nn.Conv1d) and conv.in_channels == 1:
                frames = conv_frames(lengths, conv.kernel_size, conv.stride)
                hooks.enter_context(norm.register_forward_hook(_Masked(frames)))
        yield


class _Masked:
    """A forward hook that replaces the result of a group normalisation."""

    def __init__(self, frames: Int64[Tensor, " B"]) -> None:
        self.frames = frames

    def __call__(self, norm: nn.GroupNorm, arguments: tuple[Tensor], _result: Tensor) -> Tensor:
        (values,) = arguments
        batch, channels, steps = values.shape
        outside = (torch.arange(steps, device=values.device) >= self.frames[:, None])[:, None, None]
        grouped = values.float().reshape(batch, norm.num_groups, channels // norm.num_groups, steps)
        count = (self.frames.clamp(min=1) * (channels // norm.num_groups)).reshape(-1, 1, 1, 1)
        centred = grouped - grouped.masked_fill(outside, 0).sum((2, 3), keepdim=True) / count
        variance = centred.masked_fill(outside, 0).square().sum((2, 3), keepdim=True) / count
        scaled = (centred * (variance + norm.eps).rsqrt()).reshape(values.shape).masked_fill(outside[:, :, 0], 0)
        if norm.weight is not None and norm.bias is not None:
            scaled = scaled * norm.weight.float()[:, None] + norm.bias.float()[:, None]
        return scaled.to(_result.dtype)
