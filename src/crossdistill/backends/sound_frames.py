"""Padded batches of sound: valid frames of convolutions, and layers over time that read no padding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crossdistill.errors import ShapeError
from crossdistill.losses.hidden_states import valid_frames

BY_ROW = frozenset(["hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio"])
"""Types of models that give a padded row what its clip alone gives (tested); others have more layers over time."""


def conv_frames(lengths: Int64[Tensor, " B"], kernels: Sequence[int], strides: Sequence[int]) -> Int64[Tensor, " B"]:
    """Frames that unpadded convolutions compute from the samples of each row alone: floor((n - k) / s) + 1 for each.

    A row that is shorter than the receptive field has 0 frames.
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp(min=0)


def block_frames(model: nn.Module, lengths: Int64[Tensor, " B"]) -> Int64[Tensor, " B"] | None:
    """Valid frames at each block of a model of transformers that reads waves; None: its blocks have another rule."""
    config: Any = model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    # SEW joins frames before its blocks.
    if not isinstance(kernels, list | tuple) or not isinstance(strides, list | tuple):
        return None
    if len(kernels) != len(strides) or getattr(config, "squeeze_factor", 1) != 1:
        return None
    return conv_frames(lengths, kernels, strides)


def padded_lengths(
    model: nn.Module, lengths: Int64[Tensor, " B"] | None, rows: int, samples: int
) -> Int64[Tensor, " B"] | None:
    """The lengths of a padded batch of waves (rows, samples); None: no row is padded, so that no mask is needed.

    Raises:
        ShapeError: a row is shorter than the receptive field of the convolutions, or rows are padded for a model of
            which a padded row depends on its padding.
    """
    config: Any = model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    shortest = samples if lengths is None or not rows else int(lengths.min())
    if isinstance(kernels, list | tuple) and isinstance(strides, list | tuple) and len(kernels) == len(strides):
        least = 1
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            least = (least - 1) * stride + kernel
        if shortest < least:
            row = "every row" if lengths is None else f"row {int(lengths.argmin())} of the batch"
            raise ShapeError(
                f"{config.model_type}: {row} has {shortest:,} samples, and convolutions read {least:,} for a frame; "
                "leave out shorter clips (data.min_seconds), or pad them with silence"
            )
    if lengths is None or shortest == samples:
        return None
    if config.model_type not in BY_ROW or getattr(config, "add_adapter", False):
        adapter = " with an adapter" if getattr(config, "add_adapter", False) else ""
        raise ShapeError(
            f"{config.model_type}{adapter}: rows have {shortest:,} to {samples:,} samples, and the outputs for a row "
            "depend on its padding; give rows of one length (options.seconds, or a data set that crops)"
        )
    return lengths


def mean_of_frames(states: Float[Tensor, "B T D"], frames: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """The mean over the first `frames` of each row, at least in float32; zeros for a row without frames."""
    valid = valid_frames(frames, states.shape[1])
    # In bfloat16 there is no number 781.
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    return states.masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


@contextmanager
def by_row(model: nn.Module, lengths: Int64[Tensor, " B"] | None) -> Iterator[None]:
    """Within it, layers over time give each row of a padded batch what its clip alone gives.

    The group normalisation after the first convolution takes its statistics over valid frames: over a padded row they
    would depend on the longest row of the batch. Layers before the next convolution over frames are silent after them,
    as the padding of a clip alone is. Without `lengths`, nothing changes.
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
        for layer in _before_convolutions(model):
            hooks.enter_context(layer.register_forward_hook(_silenced(block_frames(model, lengths))))
        yield


def _before_convolutions(model: nn.Module) -> Iterator[nn.Module]:
    """Layers (B, D, T) -> (B, D, T) after whose frames the padding of the next convolution of positions is read.

    The first convolution reads frames that the model itself silences: data2vec has others behind it, and a HuBERT may
    have a batch norm before it.
    """
    for name, layer in model.named_modules():
        if name.endswith("pos_conv_embed"):
            yield from getattr(layer, "layers", ())
            if isinstance(getattr(layer, "batch_norm", None), nn.Module):
                yield layer.batch_norm


def _silenced(frames: Int64[Tensor, " B"] | None) -> Callable[..., Tensor]:
    assert frames is not None

    def hook(_layer: nn.Module, _arguments: Any, result: Tensor) -> Tensor:
        return result.masked_fill(~valid_frames(frames, result.shape[2])[:, None], 0)

    return hook


class _Masked:
    """A forward hook that replaces the result of a group normalisation."""

    def __init__(self, frames: Int64[Tensor, " B"]) -> None:
        self.frames = frames

    def __call__(self, norm: nn.GroupNorm, arguments: tuple[Tensor], _result: Tensor) -> Tensor:
        (values,) = arguments
        batch, channels, steps = values.shape
        outside = ~valid_frames(self.frames, steps)[:, None, None]
        grouped = values.float().reshape(batch, norm.num_groups, channels // norm.num_groups, steps)
        count = (self.frames.clamp(min=1) * (channels // norm.num_groups)).reshape(-1, 1, 1, 1)
        centred = grouped - grouped.masked_fill(outside, 0).sum((2, 3), keepdim=True) / count
        variance = centred.masked_fill(outside, 0).square().sum((2, 3), keepdim=True) / count
        scaled = (centred * (variance + norm.eps).rsqrt()).reshape(values.shape).masked_fill(outside[:, :, 0], 0)
        if norm.weight is not None and norm.bias is not None:
            scaled = scaled * norm.weight.float()[:, None] + norm.bias.float()[:, None]
        return scaled.to(_result.dtype)
