"""Mask networks of equal shape run as one: stacked parameters, batched products, one attention for all of them.

Each network keeps its own parameters under their own names; they are stacked for the pass, and gradients go back to
each. On an accelerator, small masks cost their launches, of which there are then as many as for one. Large ones fill
the machine alone, and their stacked copies would only take memory: they run one after another.

Shapes: G networks, B rows, L units, d width, h heads.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from crossdistill.nets.mask import MaskNet1d, MaskNet2d, attend_scalars

TOGETHER_BYTES = 256 * 2**20
"""What the stacked parameters and the saved values of masks in one pass may take; masks beyond it run alone."""


def together(masks: Sequence[nn.Module], values: Sequence[Tensor], limit: int = TOGETHER_BYTES) -> list[list[int]]:
    """Which masks to run in one pass, by position: those of equal shape, as long as they stay within the limit."""
    groups: list[list[int]] = []
    open_groups: dict[object, tuple[list[int], int]] = {}
    for number, (mask, value) in enumerate(zip(masks, values, strict=True)):
        if not isinstance(mask, MaskNet1d | MaskNet2d):
            groups.append([number])
            continue
        length, width = mask.embed.in_features, mask.mha.embed_dim
        alike = (length, width, mask.mha.num_heads, len(value), value.dtype, value.device)
        # Parameters and their gradients; tokens, queries, keys, and the copies that attention takes of them.
        size = value.element_size() * length * width * (2 * length + 7 * len(value))
        group, taken = open_groups.get(alike, ([], 0))
        if not group or taken + size > limit:
            group, taken = [], 0
            groups.append(group)
        group.append(number)
        open_groups[alike] = group, taken + size
    return groups


def masks_of(masks: Sequence[nn.Module], values: Sequence[Tensor]) -> list[Tensor]:
    """The mask (B, L) that each network gives for its own value; several networks have to be of equal shape."""
    if len(masks) == 1:
        return [masks[0](values[0])]
    known = [mask for mask in masks if isinstance(mask, MaskNet1d | MaskNet2d)]
    assert len(known) == len(masks)
    vectors = torch.stack([mask.vector(value) for mask, value in zip(known, values, strict=True)])
    return list(torch.sigmoid(_unit_logits(vectors, known)).unbind())


def _unit_logits(vectors: Tensor, masks: Sequence[MaskNet1d | MaskNet2d]) -> Tensor:
    """(G, B, L) -> (G, B, L): the folded form of `mask`, with a leading dimension of networks."""

    def stacked(pick: Callable[[MaskNet1d | MaskNet2d], Tensor]) -> Tensor:
        return torch.stack([pick(mask) for mask in masks])

    (group, rows, length), width, heads = vectors.shape, masks[0].mha.embed_dim, masks[0].mha.num_heads
    embed_weight, embed_bias = stacked(lambda m: m.embed.weight), stacked(lambda m: m.embed.bias)
    tokens = torch.baddbmm(embed_bias.unsqueeze(1), vectors, embed_weight.transpose(1, 2))
    weight, bias = stacked(lambda m: m.mha.in_proj_weight), stacked(lambda m: m.mha.in_proj_bias)
    out_weight, out_bias = stacked(lambda m: m.mha.out_proj.weight), stacked(lambda m: m.mha.out_proj.bias)
    fc_weight, fc_bias = stacked(lambda m: m.fc.weight), stacked(lambda m: m.fc.bias)
    direction = torch.bmm(fc_weight, out_weight).view(group, heads, width // heads)
    value_weight = weight[:, 2 * width :].view(group, heads, width // heads, width)
    scalar_weight = torch.einsum("ghe,ghed->ghd", direction, value_weight)
    scalar_bias = (direction * bias[:, 2 * width :].view(group, heads, width // heads)).sum(dim=2)
    joint_weight = torch.cat([weight[:, : 2 * width], scalar_weight], dim=1)
    joint_bias = torch.cat([bias[:, : 2 * width], scalar_bias], dim=1)
    joint = torch.baddbmm(
        joint_bias.unsqueeze(1), tokens.view(group, rows * length, width), joint_weight.transpose(1, 2)
    )
    query, key, scalar = torch.split(joint, [width, width, heads], dim=2)
    by_head = (group * rows, length, heads, width // heads)
    attended = attend_scalars(
        query.reshape(by_head).transpose(1, 2),
        key.reshape(by_head).transpose(1, 2),
        scalar.reshape(group * rows, length, heads).transpose(1, 2),
    )
    constant = torch.bmm(fc_weight, out_bias.unsqueeze(2)) + fc_bias.unsqueeze(2)
    return attended.sum(dim=1).view(group, rows, length) + constant
