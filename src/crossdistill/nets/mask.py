"""MaskNet: attention over the units of a tap that gives a factor for each unit of a specialised teacher.

MST-Distill, section 3.3 and equations 5 to 7 (arXiv 2507.07015). The reference computes

    embed -> multi-head self-attention -> Linear(d, 1) -> sigmoid.

Everything after the attention weights is linear, so the value, output and final projections fold into one scalar for
each token and head, and only that scalar is averaged by the weights: 1.5 L³ multiply-adds instead of 2.5 L³ at
d = L / 2. Values and gradients are equal up to rounding (computed by `attention`). The parameters are those of the
reference, so that its state dictionaries load strictly.

Shapes: B rows, L units of the tap (= tokens), d width of a token, h heads.
"""

import abc

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.errors import SettingError, ShapeError
from crossdistill.nets.attention import PartialForward, opened


def mask_width(length: int, heads: int, width_factor: int) -> int:
    """Width of a token: the largest multiple of `heads` that is at most length / width_factor.

    Raises:
        SettingError: heads or factor below 1, or no positive width exists.
    """
    if heads < 1 or width_factor < 1:
        raise SettingError(f"mask: heads are {heads} and the width factor is {width_factor}; both need to be 1 or more")
    width = length // (width_factor * heads) * heads
    if width == 0:
        raise SettingError(
            f"mask: a tap of {length} units is too narrow for {heads} heads and width factor {width_factor}, which "
            f"need {width_factor * heads} units at least; take fewer heads, a smaller factor or a wider tap"
        )
    return width


def mask_units(shape: tuple[int, ...]) -> int:
    """The number of units that a mask scales at a tap of this shape (without the batch dimension).

    These are all L values of vectors (L,) and (L, 1, 1), the channels of maps (C, H, W), and the D of tokens (T, D).

    Raises:
        ShapeError: the tap has another shape.
    """
    if len(shape) not in (1, 2, 3):
        raise ShapeError(
            f"mask: no mask network for a tap of shape {shape}; possible are (units,), (channels, H, W) and "
            "(tokens, units)"
        )
    return shape[1] if len(shape) == 2 else shape[0]


def mask_for(shape: tuple[int, ...], heads: int = 3, width_factor: int = 2) -> "MaskNet1d | MaskNet2d | MaskNetTokens":
    """The mask network for a tap of this shape (without the batch dimension), with PyTorch's default initialisation.

    `MaskNet1d` for vectors (L,) and (L, 1, 1), `MaskNet2d` for maps (C, H, W), `MaskNetTokens` for tokens (T, D).

    Raises:
        SettingError: see `mask_width`.
        ShapeError: the tap is neither a vector, nor a two-dimensional map, nor a sequence of tokens.
    """
    units = mask_units(shape)
    width = mask_width(units, heads, width_factor)
    if len(shape) == 2:
        return MaskNetTokens(units, width, heads)
    return (MaskNet2d if len(shape) == 3 and shape[1:] != (1, 1) else MaskNet1d)(units, width, heads)


def apply_mask(value: Float[Tensor, "B *shape"], mask: Float[Tensor, "B L"]) -> Float[Tensor, "B *shape"]:
    """The tap's value with each unit scaled by its mask.

    Units are the first dimension after the rows; for tokens (B, T, L), the last one.
    """
    if value.ndim == 3:
        return value * mask.unsqueeze(1)
    return value * mask.reshape(*mask.shape, *[1] * (value.ndim - 2))


class MaskNet(nn.Module, abc.ABC):
    """The base of mask networks: one number per unit, followed by attention over the units."""

    mha: nn.MultiheadAttention
    """Holds, names and initialises the parameters as the reference does; its forward is not used."""
    fc: nn.Linear

    @abc.abstractmethod
    def vector(self, value: Tensor) -> Float[Tensor, "B L"]:
        """One number per unit.

        Raises:
            ShapeError: the value does not have the shape of this mask's tap.
        """

    @abc.abstractmethod
    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The forward pass from this vector up to the attention."""

    def forward(self, value: Float[Tensor, "B *shape"]) -> Float[Tensor, "B L"]:
        """The mask of each row.

        Raises:
            ShapeError: the value does not have the shape of this mask's tap.
        """
        vector = self.vector(value)
        if len(vector) == 0:
            # A rank without rows: the other ranks still expect a zero gradient for every parameter.
            return vector + torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        return torch.sigmoid(self.opened(vector).all_logits()[0])


class MaskNet1d(MaskNet):
    """A mask in (0, 1) for the L units of a vector; about L² · width parameters."""

    def __init__(self, length: int, width: int, heads: int = 3) -> None:
        """Build for `length` units; `width` must be a multiple of `heads` (`mask_width` returns the published one).

        Raises:
            SettingError: the width is not a positive multiple of the heads.
        """
        super().__init__()
        check_width(width, heads)
        self.embed = nn.Linear(length, length * width)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B L *one"]) -> Float[Tensor, "B L"]:
        """The value itself, (B, L) or (B, L, 1, 1), flattened."""
        return flat_vector(value, self.embed.in_features)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on tokens."""
        return opened(vector, self.embed, self.mha, self.fc)


class MaskNet2d(MaskNet):
    """A mask in (0, 1) for the C channels of a map, whatever its height and width; about C² · width parameters."""

    def __init__(self, channels: int, width: int, heads: int = 3) -> None:
        """Build for `channels`; `width` must be a multiple of `heads` (`mask_width` returns the published one).

        Raises:
            SettingError: the width is not a positive multiple of the heads.
        """
        super().__init__()
        check_width(width, heads)
        self.spatial_reduce = SpatialReduction(channels)
        self.embed = nn.Linear(channels, channels * width)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """The map reduced over space."""
        return reduced_maps(value, self.embed.in_features, self.spatial_reduce)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on tokens."""
        return opened(vector, self.embed, self.mha, self.fc)


class MaskNetTokens(MaskNet):
    """A mask in (0, 1) for the D units of tokens (T, D), whatever their number; about D² · width parameters.

    The counterpart of `MaskNet2d` for sequences: all tokens share the units, so one mask of the units scales all of
    them. A mask of all T · D values would need attention over T · D units, (T · D)³ multiply-adds, and would fix the
    length of the sequence; a mask of the T tokens could not select features, the purpose of the paper's mask. The paper
    has no token features.
    """

    def __init__(self, units: int, width: int, heads: int = 3) -> None:
        """Build for tokens of `units`; `width` must be a multiple of `heads` (`mask_width` returns the published one).

        Raises:
            SettingError: the width is not a positive multiple of the heads.
        """
        super().__init__()
        check_width(width, heads)
        self.token_reduce = TokenReduction(units)
        self.embed = nn.Linear(units, units * width)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """The tokens reduced over the sequence."""
        return reduced_tokens(value, self.embed.in_features, self.token_reduce)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on tokens."""
        return opened(vector, self.embed, self.mha, self.fc)


class TokenReduction(nn.Module):
    """Reduces tokens to one number per unit: linear without bias, LayerNorm, ReLU, mean over tokens.

    LayerNorm instead of the BatchNorm of `SpatialReduction`: it is common for tokens, and a row's mask does not depend
    on the other rows.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(units, units, bias=False), nn.LayerNorm(units), nn.ReLU())

    def forward(self, value: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Reduce each sequence."""
        reduced: Tensor = self.project(value)
        return reduced.mean(dim=1)


class SpatialReduction(nn.Module):
    """A map as one number per channel: depthwise 3x3 of stride 2, pointwise, BatchNorm, ReLU, mean over space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, value: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """Reduce each map."""
        reduced: Tensor = self.downsample(value)
        return reduced.mean(dim=(2, 3))


def flat_vector(value: Tensor, length: int) -> Tensor:
    """Vectors (B, L) or (B, L, 1, 1) as (B, L).

    Raises:
        ShapeError: the value is not a batch of vectors of this length.
    """
    if value.shape[1:] not in ((length,), (length, 1, 1)):
        raise ShapeError(f"mask: the tap's value is {tuple(value.shape)}, not (rows, {length})")
    return value.flatten(1)


def reduced_maps(value: Tensor, channels: int, reduction: SpatialReduction) -> Tensor:
    """Maps (B, C, H, W) as one number for each channel.

    Raises:
        ShapeError: the value is not a batch of maps with this number of channels.
    """
    if value.ndim != 4 or value.shape[1] != channels:
        raise ShapeError(f"mask: the tap's value is {tuple(value.shape)}, not (rows, {channels}, H, W)")
    reduced: Tensor = reduction(value)
    return reduced


def reduced_tokens(value: Tensor, units: int, reduction: TokenReduction) -> Tensor:
    """Tokens (B, T, D) as one number for each unit.

    Raises:
        ShapeError: the value is not a batch of tokens of this size.
    """
    if value.ndim != 3 or value.shape[2] != units:
        raise ShapeError(f"mask: the tap's value is {tuple(value.shape)}, not (rows, tokens, {units})")
    reduced: Tensor = reduction(value)
    return reduced


def check_width(width: int, heads: int) -> None:
    """Refuse a width that is not divisible by the number of heads.

    Raises:
        SettingError: the width is not a positive multiple of the heads.
    """
    if heads < 1 or width < 1 or width % heads:
        raise SettingError(f"mask: width {width} is no positive multiple of {heads} heads")
