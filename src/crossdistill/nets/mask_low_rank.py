"""MaskNets with a low-rank projector: an addition of this package, not in the paper.

Nearly all parameters of a MaskNet are in its projector from L units to L tokens of width d, L · (d · L) of them. Here
it is Linear(L, r) followed by Linear(r, d · L) without bias, r · (L + d · L) + r parameters: about L / r times fewer,
so that a reduction by 50 is possible from about 50 units on. Tokens, queries, keys and the folded values (see `mask`)
are linear in a code of r numbers: queries, keys and values are computed directly from the code, with weights that are
multiplied once per step, and tokens are not computed.

Shapes: B rows, L units of the tap (= tokens), d width of a token, h heads, r rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.errors import SettingError
from crossdistill.nets.attention import PartialForward, Workspace, folded, pass_dtype
from crossdistill.nets.mask import (
    MaskNet,
    SpatialReduction,
    TokenReduction,
    check_width,
    flat_vector,
    mask_units,
    mask_width,
    reduced_maps,
    reduced_tokens,
)

REDUCTION = 50
"""Default reduction of the number of the projector's parameters, if the tap is wide enough."""

LEAST_ROWS = 8
"""Least rows of a block: the weight that multiplies codes is large and is read once per block."""


def default_rank(length: int, width: int) -> int:
    """The largest rank with at most 1 / 50 of the full projector's parameters, or 1 if there is none.

    There is none below 52 units: rank 1 has more parameters.
    """
    full = length * width * length + length * width
    return max(1, full // REDUCTION // (length + width * length + 1))


def low_rank_mask_for(
    shape: tuple[int, ...], heads: int = 3, width_factor: int = 2, rank: int | None = None
) -> "LowRankMaskNet1d | LowRankMaskNet2d | LowRankMaskNetTokens":
    """The low-rank mask network for a tap of this shape (without the batch dimension); shapes as for `mask_for`.

    Raises:
        SettingError: a rank below 1, or see `mask_width`.
        ShapeError: the tap is neither a vector, nor a two-dimensional map, nor a sequence of tokens.
    """
    units = mask_units(shape)
    width = mask_width(units, heads, width_factor)
    chosen = default_rank(units, width) if rank is None else rank
    if len(shape) == 2:
        return LowRankMaskNetTokens(units, width, heads, chosen)
    flat = len(shape) == 1 or shape[1:] == (1, 1)
    return (LowRankMaskNet1d if flat else LowRankMaskNet2d)(units, width, heads, chosen)


class LowRankProjector(nn.Module):
    """A map from L numbers to L tokens of width d through a code of r numbers."""

    def __init__(self, length: int, width: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise SettingError(f"mask: the rank is {rank}; it needs to be 1 or more")
        self.down = nn.Linear(length, rank)
        self.up = nn.Linear(rank, length * width, bias=False)

    def forward(self, vector: Float[Tensor, "B L"]) -> Float[Tensor, "B L d"]:
        """Tokens. Not used by the mask networks, which give the same result without them."""
        tokens: Tensor = self.up(self.down(vector))
        return tokens.view(*vector.shape, -1)


class LowRankMaskNet1d(MaskNet):
    """A mask in (0, 1) for the L units of a vector; r · (L + L · width) parameters, plus those of the attention."""

    def __init__(self, length: int, width: int, heads: int = 3, rank: int = 1) -> None:
        """Build for `length` units; `width` must be a multiple of `heads`.

        Raises:
            SettingError: the width is not a positive multiple of the heads, or the rank is below 1.
        """
        super().__init__()
        check_width(width, heads)
        self.embed = LowRankProjector(length, width, rank)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B L *one"]) -> Float[Tensor, "B L"]:
        """The value itself, (B, L) or (B, L, 1, 1), flattened."""
        return flat_vector(value, self.embed.down.in_features)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on codes."""
        return _opened(vector, self.embed, self.mha, self.fc)


class LowRankMaskNet2d(MaskNet):
    """A mask in (0, 1) for the C channels of a map; as `LowRankMaskNet1d`, behind the same reduction over space."""

    def __init__(self, channels: int, width: int, heads: int = 3, rank: int = 1) -> None:
        """Build for `channels`; `width` must be a multiple of `heads`.

        Raises:
            SettingError: the width is not a positive multiple of the heads, or the rank is below 1.
        """
        super().__init__()
        check_width(width, heads)
        self.spatial_reduce = SpatialReduction(channels)
        self.embed = LowRankProjector(channels, width, rank)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """The map reduced over space."""
        return reduced_maps(value, self.embed.down.in_features, self.spatial_reduce)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on codes."""
        return _opened(vector, self.embed, self.mha, self.fc)


class LowRankMaskNetTokens(MaskNet):
    """A mask in (0, 1) for the D units of tokens; as `LowRankMaskNet1d`, behind the reduction of `MaskNetTokens`."""

    def __init__(self, units: int, width: int, heads: int = 3, rank: int = 1) -> None:
        """Build for tokens of `units`; `width` must be a multiple of `heads`.

        Raises:
            SettingError: the width is not a positive multiple of the heads, or the rank is below 1.
        """
        super().__init__()
        check_width(width, heads)
        self.token_reduce = TokenReduction(units)
        self.embed = LowRankProjector(units, width, rank)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def vector(self, value: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """The tokens reduced over the sequence."""
        return reduced_tokens(value, self.embed.down.in_features, self.token_reduce)

    def opened(self, vector: Float[Tensor, "B L"]) -> PartialForward:
        """The partial pass on codes."""
        return _opened(vector, self.embed, self.mha, self.fc)


def _opened(vector: Tensor, embed: LowRankProjector, mha: nn.MultiheadAttention, fc: nn.Linear) -> PartialForward:
    """The partial pass on codes of r numbers, with the projections of tokens multiplied once for all rows."""
    length, width = embed.down.in_features, mha.embed_dim
    dtype = pass_dtype(vector)
    with torch.autocast(vector.device.type, enabled=False):
        code = functional.linear(vector.to(dtype), embed.down.weight.to(dtype), embed.down.bias.to(dtype))
        (weight,), constant = folded(mha, fc)
        # The projections of token i as a function of the code: (L, 2hE, r).
        from_code = torch.matmul(weight[:, :width], embed.up.weight.view(length, width, -1)).to(dtype)
    shared = (constant, from_code, weight[:, width].to(dtype))
    heads = mha.num_heads
    return PartialForward(code.unsqueeze(0), shared, _from_codes, length, heads, width // heads, least=LEAST_ROWS)


def _from_codes(
    _room: Workspace, code: Float[Tensor, "1 n r"], from_code: Tensor, bias: Tensor
) -> Float[Tensor, "1 n L two_h_E"]:
    joint = functional.linear(code.squeeze(0), from_code.flatten(0, 1), bias.repeat(len(from_code)))
    return joint.view(1, len(joint), *from_code.shape[:2])
