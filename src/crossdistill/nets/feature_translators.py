"""Heads that predict several layers of a teacher from a student's frames (arXiv 2506.07237, DistilHuBERT, Theia).

With a student and a teacher of width 768 and three layers, the heads have these parameters:

| kind | head | parameters |
|---|---|---|
| mlp, shared | Linear to D for each layer, GELU, affine maps (of each layer); `shared`: one for all | 3,543,552 |
| half | `mlp` on a part of the student's channels | 2,658,816 |
| lconv | Linear to 1.5 D, GELU, norm, convolution of 3 frames, ReLU, Linear, norm, GELU, affine maps | 9,303,552 |
| layer-mlp | for each layer: Linear to 2 D, GELU, Linear | 3 x 2,361,600 |
| layer-lconv | for each layer: Linear, convolution of 3 frames, ReLU, LayerNorm, GELU, Linear | 3 x 2,952,960 |

`conv`, `transformer` and `light` are after Theia's translators (arXiv 2407.20179), with frames in place of patches.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

TranslatorKind = Literal[
    "mlp", "lconv", "hybrid", "shared", "half", "layer-mlp", "layer-lconv", "conv", "transformer", "light"
]
LAYERWISE = ("layer-mlp", "layer-lconv")
"""Kinds with a separate head for each layer."""


def feature_translator(kind: TranslatorKind, width: int, out: int, layers: int) -> nn.Module:
    """A head from frames of `width` channels to `layers` layers of `out` channels: (B, T, width) -> (B, N, T, out).

    Its call takes the frames and a mask (B, T) of the valid ones (None: all); other frames change no valid one.
    `shared`, `half` and `hybrid` are choices between teachers, and the head of each is `mlp` (or `lconv`) here.
    """
    if kind in LAYERWISE:
        layer = _LayerMlp if kind == "layer-mlp" else _LayerLconv
        return ByLayer([layer(width, out) for _ in range(layers)])
    body: nn.Module
    if kind == "lconv":
        body, inner = _Lconv(width, layers), width
    elif kind == "conv":
        body, inner = _Convolutions(width, layers * width), width
    elif kind == "light":
        body, inner = _Separable(width, layers * width), width
    elif kind == "transformer":
        body, inner = _Attention(width, layers * width), width
    else:
        # Half of the student's channels still widen to the teacher's.
        inner = max(width, out)
        body = _Pointwise(width, layers * inner)
    return AllLayers(body, SplitLinear(layers, inner, out))


class SplitLinear(nn.Module):
    """Groups of the last axis, each with its own affine map; weights and biases are uniform in ±1/sqrt(inner)."""

    def __init__(self, groups: int, inner: int, out: int) -> None:
        super().__init__()
        self.groups = groups
        bound = inner**-0.5
        self.weight = nn.Parameter(torch.empty(groups, inner, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, 1, out).uniform_(-bound, bound))

    def forward(self, value: Float[Tensor, "B T GI"]) -> Float[Tensor, "B G T O"]:
        """One result for each group."""
        parts = value.unflatten(-1, (self.groups, -1)).transpose(1, 2)
        mapped: Tensor = parts @ self.weight + self.bias
        return mapped


class AllLayers(nn.Module):
    """A body that all layers share, and an affine map for each of them."""

    def __init__(self, body: nn.Module, split: SplitLinear) -> None:
        super().__init__()
        self.body, self.split = body, split

    def forward(self, frames: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B N T O"]:
        """The predicted layers."""
        predicted: Tensor = self.split(self.body(frames, valid))
        return predicted


class ByLayer(nn.Module):
    """A head for each layer; `layer` selects one of them, for students whose layers predict one each."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, frames: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B N T O"]:
        """The predicted layers."""
        return torch.stack([head(frames, valid) for head in self.heads], 1)

    def layer(self, number: int, frames: Tensor, valid: Tensor | None) -> Float[Tensor, "B T O"]:
        """The prediction of one layer."""
        predicted: Tensor = self.heads[number](frames, valid)
        return predicted


def without_padding(frames: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
    """The frames with zeros where they are not valid, whatever stood there (NaN too)."""
    return frames if valid is None else frames.where(valid.unsqueeze(-1), 0.0)


def _along_time(convolution: nn.Module, frames: Tensor, valid: Tensor | None) -> Tensor:
    value: Tensor = convolution(without_padding(frames, valid).transpose(1, 2))
    return value.transpose(1, 2)


class _Pointwise(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        return functional.gelu(self.linear(frames))


class _Lconv(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        wide = width * 3 // 2
        self.widen, self.norm = nn.Linear(width, wide), nn.LayerNorm(wide)
        self.convolution = nn.Conv1d(wide, wide, 3, padding=1)
        self.spread, self.last_norm = nn.Linear(wide, layers * width), nn.LayerNorm(layers * width)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        value = self.norm(functional.gelu(self.widen(frames)))
        value = functional.relu(_along_time(self.convolution, value, valid))
        return functional.gelu(self.last_norm(self.spread(value)))


class _LayerMlp(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, out)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        value: Tensor = self.narrow(functional.gelu(self.widen(frames)))
        return value


class _LayerLconv(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, out)
        self.convolution, self.norm = nn.Conv1d(width, width, 3, padding=1), nn.LayerNorm(width)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        value = functional.relu(_along_time(self.convolution, self.first(frames), valid))
        predicted: Tensor = self.last(functional.gelu(self.norm(value)))
        return predicted


class _Convolutions(nn.Module):
    """Theia's translator by convolutions: LayerNorm, then two of 3 frames with LayerNorm and ReLU, then Linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.last = nn.Linear(width, out)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        value = self.norms[0](frames)
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            value = functional.relu(norm(_along_time(convolution, value, valid)))
        predicted: Tensor = self.last(value)
        return predicted


class _Separable(nn.Module):
    """A light translator: a convolution of 3 frames within each channel, then a map across channels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.across = nn.LayerNorm(width), nn.Linear(width, out)
        self.within = nn.Conv1d(width, width, 3, padding=1, groups=width)

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        return functional.gelu(self.across(self.norm(_along_time(self.within, frames, valid))))


class _Attention(nn.Module):
    """One block of self-attention over the valid frames (pre-norm, no dropout), then a map to all layers."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in (12, 8, 4, 2, 1) if width % heads == 0)
        self.norm, self.mixed = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.joined, self.last = nn.Linear(width, width), nn.Linear(width, out)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        frames = without_padding(frames, valid)
        parts = self.mixed(self.norm(frames)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # A row without valid frames attends to all of them: a softmax over nothing is NaN.
        mask = None if valid is None else (valid | ~valid.any(1, keepdim=True))[:, None, None, :]
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], mask)
        value = frames + self.joined(seen.transpose(1, 2).flatten(2))
        predicted: Tensor = self.last(value + self.inner(value))
        return predicted
