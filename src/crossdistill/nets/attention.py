"""The attention of mask networks: one scalar for each token is averaged, in blocks of rows, and no weights are kept.

`mask` says how a mask network folds into this form. Between the passes only the tokens are kept; queries, keys and
attention weights are made again in the backward pass, a block of rows at a time, so that a block stays in the cache.
Its gradients are written out. With weights A = softmax(q · k), values s, means o = A s and the gradient g to them,

    to s: Aᵀ g,    to q: g ⊙ (R k),    to k: Rᵀ (g ⊙ q),    where R = A ⊙ (s - o).

Widths are padded to multiples of 8 with zeros, which change no product: at d = 297 matrix products are a third faster.
Each head's scalar takes one of the padded columns beside its queries, and biases take one beside the tokens.

Shapes: G networks of equal shape, B rows, L tokens of width d, h heads of width e = d / h.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LOG2_E = math.log2(math.e)
BLOCK = {"cpu": 2**19}
"""Attention weights of one block, by the kind of device; blocks of a row each where one row has more."""
LARGE_BLOCK = 2**26
"""... and elsewhere, where the number of launches counts."""


def _aligned(width: int) -> int:
    return -(-width // 8) * 8


def unit_logits(
    vector: Float[Tensor, "B L"], embed: nn.Linear, mha: nn.MultiheadAttention, fc: nn.Linear
) -> Float[Tensor, "B L"]:
    """What the sigmoid turns into the mask; half precision where autocast says so, softmax in float32 all the same."""
    if len(vector) == 0:
        # A rank without rows: nothing to attend to, but a gradient of zero for every parameter is still waited for.
        return vector + torch.stack([one.sum() for layer in (embed, mha, fc) for one in layer.parameters()]).sum()
    kind = vector.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else vector.dtype
    with torch.autocast(kind, enabled=False):
        tokens = embedded(vector.to(dtype), embed.weight.to(dtype), embed.bias.to(dtype))
        attended = attend(
            tokens.unsqueeze(0),
            mha.in_proj_weight.unsqueeze(0),
            mha.in_proj_bias.unsqueeze(0),
            mha.out_proj.weight.unsqueeze(0),
            fc.weight.unsqueeze(0),
            mha.num_heads,
        )
        return attended[0] + functional.linear(mha.out_proj.bias, fc.weight, fc.bias)


def embedded(vector: Float[Tensor, "B L"], weight: Tensor, bias: Tensor) -> Float[Tensor, "B L d"]:
    """Each row as L tokens: `functional.linear`, on the CPU token by token, which is up to twice as fast there."""
    if vector.device.type != "cpu":
        return functional.linear(vector, weight, bias).view(*vector.shape, -1)
    apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _Embed.apply
    return apply(vector, weight, bias)


def attend(
    tokens: Float[Tensor, "G B L d"],
    in_weight: Float[Tensor, "G three_d d"],
    in_bias: Float[Tensor, "G three_d"],
    out_weight: Float[Tensor, "G d d"],
    fc_weight: Float[Tensor, "G 1 d"],
    heads: int,
) -> Float[Tensor, "G B L"]:
    """fc_weight · out_weight · (attention of the tokens to each other), without the constants of both layers.

    The parameters are `nn.MultiheadAttention`'s and a `Linear(d, 1)`'s, each with a leading dimension of networks.
    """
    groups, _, _, width = tokens.shape
    head_width = width // heads
    direction = torch.bmm(fc_weight, out_weight).view(groups, heads, head_width)
    # The weights of the attention sum to 1, which lets the value bias pass through them like the values.
    whole = torch.cat([in_weight, in_bias.unsqueeze(2)], dim=2)
    query, key, value = whole.view(groups, 3, heads, head_width, width + 1).unbind(1)
    scalar = torch.einsum("ghe,ghed->ghd", direction, value).unsqueeze(2)
    # Powers of two are taken below, which costs half as much as exponentials.
    query = torch.cat([query * (LOG2_E / math.sqrt(head_width)), scalar], dim=2)
    room, columns = _aligned(head_width + 1), _aligned(width + 1) - width - 1
    query = functional.pad(query, (0, columns, 0, room - head_width - 1))
    key = functional.pad(key, (0, columns, 0, room - head_width))
    weight = torch.stack([query, key], dim=2).flatten(1, 3).to(tokens.dtype)
    apply: Callable[[Tensor, Tensor, int, int], Tensor] = _Attend.apply
    return apply(tokens, weight, heads, head_width)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, length = vector.shape
        by_token = weight.view(length, -1, length)
        tokens = vector.new_empty((rows, length, by_token.shape[1]))
        torch.baddbmm(
            bias.view(length, 1, -1),
            vector.expand(length, rows, length),
            by_token.transpose(1, 2),
            out=tokens.transpose(0, 1),
        )
        ctx.save_for_backward(vector, weight if ctx.needs_input_grad[0] else None)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        vector, weight = ctx.saved_tensors
        rows, length = vector.shape
        to_vector = gradient.reshape(rows, -1) @ weight if ctx.needs_input_grad[0] else None
        to_weight = torch.bmm(gradient.permute(1, 2, 0), vector.expand(length, rows, length))
        return to_vector, to_weight.flatten(0, 1), gradient.sum(0).flatten()


class _Room:
    """Memory for one block of rows, taken once: on the CPU, fresh memory costs more than what is computed in it."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = self._like.new_empty(size)
        return self._flat[name][:size].view(shape)


class _Attend(torch.autograd.Function):
    """(G, B, L, d) and `attend`'s joint weights -> (G, B, L), summed over heads."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, heads: int, head_width: int) -> Tensor:
        room = _Room(tokens)
        exact = torch.promote_types(tokens.dtype, torch.float32)
        result = tokens.new_zeros(tokens.shape[:3], dtype=exact)
        means = tokens.new_empty((heads, *tokens.shape[:3]), dtype=exact)
        logs = torch.empty_like(means)
        for block in _blocks(tokens):
            _, joint = _joint(tokens[:, block], weight, room)
            for head in range(heads):
                query, key = _of_head(joint, head, heads)
                scores = torch.bmm(query, key.transpose(1, 2), out=_square(room, "scores", joint)).to(exact)
                top = scores.amax(2, keepdim=True)
                weights = scores.sub_(top).exp2_()
                total = weights.sum(2)
                value = query[..., head_width].to(exact).contiguous()
                mean = torch.bmm(weights, value.unsqueeze(2)).squeeze(2).div_(total)
                means[head, :, block] = mean.view_as(means[head, :, block])
                logs[head, :, block] = total.log2_().add_(top.squeeze(2)).view_as(means[head, :, block])
                result[:, block] += means[head, :, block]
        ctx.save_for_backward(tokens, weight, means, logs)
        ctx.heads, ctx.head_width = heads, head_width
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        tokens, weight, means, logs = ctx.saved_tensors
        room, width = _Room(tokens), tokens.shape[3]
        to_tokens = torch.empty_like(tokens)
        to_weight = torch.zeros_like(weight, dtype=means.dtype)
        for block in _blocks(tokens):
            padded, joint = _joint(tokens[:, block], weight, room)
            to_joint = room("to joint", *joint.shape)
            pull = gradient[:, block].flatten(0, 1)
            for head in range(ctx.heads):
                query, key = _of_head(joint, head, ctx.heads)
                mean, log = (one[head, :, block].flatten(0, 1).unsqueeze(2) for one in (means, logs))
                to_query, to_key = _of_head(to_joint, head, ctx.heads)
                value = query[..., ctx.head_width].to(means.dtype).contiguous()
                scores = torch.bmm(query, key.transpose(1, 2), out=_square(room, "scores", joint))
                weights = scores.to(means.dtype).sub_(log).exp2_()
                to_value = torch.bmm(pull.unsqueeze(1), weights).squeeze(1)
                apart = _square(room, "apart", joint) if scores.dtype == means.dtype else torch.empty_like(weights)
                torch.sub(value.unsqueeze(1), mean, out=apart)
                bent = weights.mul_(apart).to(scores.dtype)
                # Of scores in powers of two.
                factor = (pull * math.log(2)).unsqueeze(2).to(scores.dtype)
                torch.bmm(bent, key, out=to_query).mul_(factor)
                torch.bmm(bent.transpose(1, 2), query.mul_(factor), out=to_key)
                to_query[..., ctx.head_width] = to_value
            to_joint = to_joint.view(len(weight), -1, weight.shape[1])
            to_padded = torch.bmm(to_joint, weight, out=room("to padded", *padded.shape))
            to_tokens[:, block] = to_padded[..., :width].view_as(to_tokens[:, block])
            to_weight += torch.bmm(to_joint.transpose(1, 2), padded, out=room("to weight", *weight.shape))
        return to_tokens, to_weight.to(weight.dtype), None, None


def _blocks(tokens: Tensor) -> Iterator[slice]:
    """Rows that are worked on together."""
    groups, rows, length, _ = tokens.shape
    most = BLOCK.get(tokens.device.type, LARGE_BLOCK)
    size = max(1, most // max(1, groups * length**2))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _joint(tokens: Tensor, weight: Tensor, room: _Room) -> tuple[Tensor, Tensor]:
    """Tokens with a column of ones, padded (G, n · L, columns), and their queries, scalars and keys (G · n, L, ...)."""
    groups, rows, length, width = tokens.shape
    padded = room("padded", groups, rows * length, weight.shape[2])
    padded[..., width + 1 :] = 0
    padded[..., width] = 1
    padded.view(groups, rows, length, -1)[..., :width] = tokens
    joint = room("joint", groups, rows * length, weight.shape[1])
    torch.bmm(padded, weight.transpose(1, 2), out=joint)
    return padded, joint.view(groups * rows, length, -1)


def _of_head(joint: Tensor, head: int, heads: int) -> tuple[Tensor, Tensor]:
    """Queries with the scalar, and keys, of one head, each (G · n, L, e and padding)."""
    width = joint.shape[2] // (2 * heads)
    query, key = joint[..., 2 * head * width : 2 * (head + 1) * width].split(width, dim=2)
    return query, key


def _square(room: _Room, name: str, joint: Tensor) -> Tensor:
    """Room for one number for each pair of tokens of a row."""
    return room(name, len(joint), joint.shape[1], joint.shape[1])
