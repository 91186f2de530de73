"""Mask networks of equal shape in one pass: stacked parameters, batched products, one attention.

Each network keeps its parameters under their names; they are stacked for the pass, and each parameter gets its
gradient. On an accelerator, the cost of small masks is their kernel launches, which one pass reduces to those of one
mask. A large mask uses the whole device, and stacked copies would only need memory: large masks run one after another.

Shapes: G networks, B rows, L units, d width, h heads.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.nets.attention import PartialForward, joint_weight, opened_tokens
from crossdistill.nets.batch_statistics import is_joint
from crossdistill.nets.mask import MaskNet, MaskNet1d, MaskNet2d, MaskNetTokens

Full = MaskNet1d | MaskNet2d | MaskNetTokens
TOGETHER_BYTES = 256 * 2**20
"""Most bytes of the stacked parameters and saved values of masks in one pass; larger masks run alone."""


def together(masks: Sequence[nn.Module], values: Sequence[Tensor], limit: int = TOGETHER_BYTES) -> list[list[int]]:
    """Groups of masks for one pass each, by position: masks of equal shape within the limit."""
    groups: list[list[int]] = []
    open_groups: dict[object, tuple[list[int], int]] = {}
    for number, (mask, value) in enumerate(zip(masks, values, strict=True)):
        # The groups depend on a rank's number of rows, but joint norms need the same order on all ranks.
        if not isinstance(mask, Full) or is_joint(mask):
            groups.append([number])
            continue
        length, width = mask.embed.in_features, mask.mha.embed_dim
        alike = (length, width, mask.mha.num_heads, len(value), value.dtype, value.device)
        # Parameters and tokens, and their gradients.
        size = value.element_size() * length * width * (2 * length + 2 * len(value))
        group, taken = open_groups.get(alike, ([], 0))
        if not group or taken + size > limit:
            group, taken = [], 0
            groups.append(group)
        group.append(number)
        open_groups[alike] = group, taken + size
    return groups


def masks_of(masks: Sequence[nn.Module], values: Sequence[Tensor]) -> list[Tensor]:
    """The mask (B, L) of each network for its value; several networks must have equal shapes."""
    if len(masks) == 1:
        return [masks[0](values[0])]
    if len(values[0]) == 0:
        return [mask(value) for mask, value in zip(masks, values, strict=True)]
    return list(torch.sigmoid(opened_together(masks, values).all_logits()).unbind())


def opened_together(masks: Sequence[nn.Module], values: Sequence[Tensor]) -> PartialForward:
    """The pass of all networks for their values up to the attention; several networks must have equal shapes.

    At least one row is required.
    """
    known = [mask for mask in masks if isinstance(mask, MaskNet)]
    assert len(known) == len(masks)
    vectors = [mask.vector(value) for mask, value in zip(known, values, strict=True)]
    if len(known) == 1:
        return known[0].opened(vectors[0])
    full = [mask for mask in known if isinstance(mask, Full)]
    assert len(full) == len(known)
    return _opened(torch.stack(vectors), full)


def _opened(vectors: Float[Tensor, "G B L"], masks: Sequence[Full]) -> PartialForward:
    """`attention.opened` with a leading dimension of networks."""

    def stacked(pick: Callable[[Full], Tensor]) -> Tensor:
        return torch.stack([pick(mask) for mask in masks])

    embed_weight, embed_bias = stacked(lambda m: m.embed.weight), stacked(lambda m: m.embed.bias)
    tokens = torch.baddbmm(embed_bias.unsqueeze(1), vectors, embed_weight.transpose(1, 2))
    heads = masks[0].mha.num_heads
    with torch.autocast(vectors.device.type, enabled=False):
        fc_weight = stacked(lambda m: m.fc.weight)
        weight = joint_weight(
            stacked(lambda m: m.mha.in_proj_weight),
            stacked(lambda m: m.mha.in_proj_bias),
            stacked(lambda m: m.mha.out_proj.weight),
            fc_weight,
            heads,
        )
        constant = torch.bmm(fc_weight, stacked(lambda m: m.mha.out_proj.bias).unsqueeze(2))
        constant = constant + stacked(lambda m: m.fc.bias).unsqueeze(2)
    return opened_tokens(tokens.view(*vectors.shape, -1), weight, constant, heads)
