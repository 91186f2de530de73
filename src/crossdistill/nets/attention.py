"""The attention of mask networks: an average of one scalar per token, computed in blocks of rows.

`mask` explains how a mask network is folded into this form. With weights A = softmax(q · k), values s, means o = A s
and their gradient g, the explicit gradients are

    to s: Aᵀ g,    to q: g ⊙ (R k),    to k: Rᵀ (g ⊙ q),    where R = A ⊙ (s - o).

A block fits into the cache. There are two modes. With gradients per block (`immediate.immediately_in_blocks`), a
block's weights are kept until its backward pass, and nothing is computed twice. A mask network that is called like any
module saves only its input (tokens) and recomputes the rest in the backward pass.

Widths are padded with zeros to multiples of 8, which changes no product: at d = 297 matrix products are a third faster.
Each head's scalar uses one of the padded columns next to its queries, and biases use one next to the tokens.

Shapes: G networks of equal shape, B rows, L tokens of width d, h heads of width e = d / h, E = e + 1 padded.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from crossdistill.autograd.factored import FactoredGradient, product, worth_factoring

LOG2_E = math.log2(math.e)
BLOCK = {"cpu": 17 * 2**17}
"""Most attention weights of one block (all heads), by the kind of device; a block has at least one row."""
LARGE_BLOCK = 2**25
"""The same for other devices, on which the number of kernel launches matters."""


class Workspace:
    """Reused memory for one block of rows: on the CPU, an allocation costs more than the computation.

    It also holds the values saved for a block's backward pass, which must be finished before the next block starts.
    """

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, with the dtype and device of another tensor."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != like.dtype:
            flat = self._flat[name] = like.new_empty(size)
        return flat[:size].view(shape)


@dataclass(frozen=True, slots=True)
class PartialForward:
    """A forward pass of mask networks up to the attention: values per row, and values shared by all rows."""

    rows: Float[Tensor, "G B *any"]
    shared: tuple[Tensor, ...]
    """The first tensor is added to every logit; the others are arguments of `joint`."""
    joint: Callable[..., Tensor]
    """A function of the workspace, some rows, and `shared[1:]`; returns (G, n, L, 2hE): see `joint_weight`."""
    length: int
    heads: int
    head_width: int
    least: int = 1
    """Least rows of a block."""
    room: Workspace = field(default_factory=Workspace)

    def logits(self, rows: Float[Tensor, "G n *any"], constant: Tensor, *shared: Tensor) -> Float[Tensor, "G n L"]:
        """Logits of the masks (before the sigmoid) of some rows; saves the attention weights for the backward pass.

        The backward pass must be finished before the next call of `logits`.
        """
        apply: Callable[[Tensor, int, int, Workspace], Tensor] = _Average.apply
        with torch.autocast(rows.device.type, enabled=False):
            joint = self.joint(self.room, rows, *shared)
            return apply(joint.flatten(0, 1), self.heads, self.head_width, self.room).view(joint.shape[:3]) + constant

    def blocks(self) -> Iterator[slice]:
        """Slices of rows that are processed together."""
        groups, rows = self.rows.shape[:2]
        most = BLOCK.get(self.rows.device.type, LARGE_BLOCK)
        size = max(self.least, most // max(1, groups * self.heads * self.length**2))
        return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

    def all_logits(self) -> Float[Tensor, "G B L"]:
        """`logits` of all rows, without saved attention weights."""
        apply: Callable[..., Tensor] = _Recompute.apply
        return apply(self.logits, list(self.blocks()), self.rows, *self.shared)


def opened(vector: Float[Tensor, "B L"], embed: nn.Linear, mha: nn.MultiheadAttention, fc: nn.Linear) -> PartialForward:
    """The partial pass of one mask network; half precision under autocast, with the softmax in float32."""
    dtype = pass_dtype(vector)
    with torch.autocast(vector.device.type, enabled=False):
        tokens = embedded(vector.to(dtype), embed.weight.to(dtype), embed.bias.to(dtype))
        weight, constant = folded(mha, fc)
    return opened_tokens(tokens.unsqueeze(0), weight, constant, mha.num_heads)


def opened_tokens(tokens: Float[Tensor, "G B L d"], weight: Tensor, constant: Tensor, heads: int) -> PartialForward:
    """The partial pass of networks with rows of tokens."""
    length, width = tokens.shape[2:]
    return PartialForward(tokens, (constant, weight.to(tokens.dtype)), _from_tokens, length, heads, width // heads)


def pass_dtype(vector: Tensor) -> torch.dtype:
    """The dtype of a pass: autocast's if it is enabled, else that of the vector."""
    kind = vector.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else vector.dtype


def folded(mha: nn.MultiheadAttention, fc: nn.Linear) -> tuple[Tensor, Tensor]:
    """The `joint_weight` of one network, (1, 2hE, columns), and the constant added to every logit."""
    parameters = (mha.in_proj_weight, mha.in_proj_bias, mha.out_proj.weight, fc.weight)
    in_weight, in_bias, out_weight, fc_weight = (parameter.unsqueeze(0) for parameter in parameters)
    weight = joint_weight(in_weight, in_bias, out_weight, fc_weight, mha.num_heads)
    return weight, functional.linear(mha.out_proj.bias, fc.weight, fc.bias)


def joint_weight(
    in_weight: Float[Tensor, "G three_d d"],
    in_bias: Float[Tensor, "G three_d"],
    out_weight: Float[Tensor, "G d d"],
    fc_weight: Float[Tensor, "G 1 d"],
    heads: int,
) -> Float[Tensor, "G two_h_E columns"]:
    """All projections of tokens as one matrix: per head its queries and scalar, then its keys. Biases are column d.

    The parameters are `nn.MultiheadAttention`'s and a `Linear(d, 1)`'s, each with a leading dimension of networks; the
    scalar is fc_weight · out_weight · value.
    """
    groups, _, width = in_weight.shape
    head_width = width // heads
    direction = torch.bmm(fc_weight, out_weight).view(groups, heads, head_width)
    # The attention weights sum to 1, so that the value bias can be part of the values.
    whole = torch.cat([in_weight, in_bias.unsqueeze(2)], dim=2)
    query, key, value = whole.view(groups, 3, heads, head_width, width + 1).unbind(1)
    scalar = torch.einsum("ghe,ghed->ghd", direction, value).unsqueeze(2)
    # exp2 is used below, which costs half as much as exp.
    query = torch.cat([query * (LOG2_E / math.sqrt(head_width)), scalar], dim=2)
    room, columns = _aligned(head_width + 1), _aligned(width + 1) - width - 1
    query = functional.pad(query, (0, columns, 0, room - head_width - 1))
    key = functional.pad(key, (0, columns, 0, room - head_width))
    return torch.stack([query, key], dim=2).flatten(1, 3)


def embedded(vector: Float[Tensor, "B L"], weight: Tensor, bias: Tensor) -> Float[Tensor, "B L d"]:
    """Each row as L tokens: `functional.linear`; on the CPU per token, which is up to twice as fast."""
    if vector.device.type != "cpu":
        return functional.linear(vector, weight, bias).view(*vector.shape, -1)
    apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _Embed.apply
    return apply(vector, weight, bias)


def _aligned(width: int) -> int:
    return -(-width // 8) * 8


def _from_tokens(room: Workspace, tokens: Float[Tensor, "G n L d"], weight: Tensor) -> Float[Tensor, "G n L two_h_E"]:
    apply: Callable[[Workspace, Tensor, Tensor], Tensor] = _FromTokens.apply
    return apply(room, tokens, weight)


class _FromTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, room: Workspace, tokens: Tensor, weight: Tensor) -> Tensor:
        padded = _padded(room, tokens, weight.shape[2])
        joint = room("joint", tokens, *padded.shape[:2], weight.shape[1])
        torch.bmm(padded, weight.transpose(1, 2), out=joint)
        ctx.save_for_backward(tokens, weight)
        ctx.room = room
        return joint.view(*tokens.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        tokens, weight = ctx.saved_tensors
        gradient = gradient.flatten(1, 2)
        padded = _padded(ctx.room, tokens, weight.shape[2])
        to_weight = torch.bmm(gradient.transpose(1, 2), padded)
        # The padded tokens are no longer needed.
        to_padded = torch.bmm(gradient, weight, out=padded)
        return None, to_padded.view(*tokens.shape[:3], -1)[..., : tokens.shape[3]], to_weight


def _padded(room: Workspace, tokens: Float[Tensor, "G n L d"], columns: int) -> Float[Tensor, "G n_L columns"]:
    """Tokens with a column of ones for the bias, padded with zero columns."""
    groups, rows, length, width = tokens.shape
    padded = room("padded", tokens, groups, rows, length, columns)
    padded[..., :width] = tokens
    padded[..., width] = 1
    padded[..., width + 1 :] = 0
    return padded.flatten(1, 2)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, length = vector.shape
        by_token = weight.view(length, -1, length)
        tokens = torch.bmm(vector.expand(length, rows, length), by_token.transpose(1, 2))
        ctx.save_for_backward(vector, weight if ctx.needs_input_grad[0] else None)
        ctx.factored = worth_factoring(rows, weight)
        return tokens.add_(bias.view(length, 1, -1)).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        vector, weight = ctx.saved_tensors
        to_vector = gradient.reshape(len(vector), -1) @ weight if ctx.needs_input_grad[0] else None
        by_token = gradient.transpose(0, 1)
        to_weight = FactoredGradient(by_token, vector) if ctx.factored else product(by_token, vector)
        return to_vector, to_weight, gradient.sum(0).flatten()


class _Average(torch.autograd.Function):
    """(N, L, 2hE) -> (N, L): the attention-weighted means of the scalars, summed over heads."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, heads: int, head_width: int, room: Workspace) -> Tensor:
        query, key = _by_head(joint, heads)
        rows, length = joint.shape[:2]
        scores = room("weights", joint, heads, rows, length, length)
        for head in range(heads):
            torch.bmm(query[head], key[head].transpose(1, 2), out=scores[head])
        weights = scores.flatten(0, 1).to(torch.promote_types(joint.dtype, torch.float32))
        weights.sub_(weights.amax(2, keepdim=True)).exp2_()
        total = weights.sum(2)
        value = query[..., head_width].to(weights.dtype).reshape(-1, length)
        # A row times a matrix: a matrix times a column takes ten times longer on a CPU.
        mean = torch.bmm(value.unsqueeze(1), weights.transpose(1, 2)).squeeze(1).div_(total)
        ctx.save_for_backward(joint, weights, total, value, mean)
        ctx.heads, ctx.head_width, ctx.room = heads, head_width, room
        return mean.view(heads, rows, length).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        joint, weights, total, value, mean = ctx.saved_tensors
        heads, (rows, length), dtype = ctx.heads, joint.shape[:2], joint.dtype
        to_joint = ctx.room("to joint", joint, *joint.shape)
        query, key = _by_head(joint, heads)
        to_query, to_key = _by_head(to_joint, heads)
        pull = gradient.repeat(heads, 1).div_(total)
        to_value = torch.bmm(pull.unsqueeze(1), weights).view(heads, rows, length)
        # Gradient of scores in base 2.
        factor = (pull * math.log(2)).to(dtype).view(heads, rows, length, 1)
        pulled = torch.mul(query, factor, out=ctx.room("pulled", joint, *query.shape))
        apart = ctx.room("apart", weights, rows, length, length)
        tensors = (weights, value.unsqueeze(1), mean.unsqueeze(2))
        by_head = (tensor.view(heads, rows, *tensor.shape[1:]) for tensor in tensors)
        for head, (weight, scalar, average) in enumerate(zip(*by_head, strict=True)):
            weighted = torch.sub(scalar, average, out=apart).mul_(weight).to(dtype)
            torch.bmm(weighted, key[head], out=to_query[head])
            torch.bmm(weighted.transpose(1, 2), pulled[head], out=to_key[head])
        to_query.mul_(factor)[..., ctx.head_width] = to_value
        return to_joint, None, None, None


class _Recompute(torch.autograd.Function):
    """`compute` on rows (G, B, ...) and shared tensors, in blocks that the backward pass recomputes."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], blocks: list[slice], rows: Tensor, *shared: Tensor) -> Tensor:
        ctx.save_for_backward(rows, *shared)
        ctx.compute, ctx.blocks = compute, blocks
        return torch.cat([compute(rows[:, block], *shared) for block in blocks], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *shared = ctx.saved_tensors
        to_rows, to_shared = torch.empty_like(rows), [torch.zeros_like(tensor) for tensor in shared]
        for block in ctx.blocks:
            leaves = [tensor.detach().requires_grad_() for tensor in (rows[:, block], *shared)]
            with torch.enable_grad():
                result = ctx.compute(*leaves)
            gradients = torch.autograd.grad(result, leaves, gradient[:, block])
            to_rows[:, block] = gradients[0]
            for whole, part in zip(to_shared, gradients[1:], strict=True):
                whole += part
        return None, None, to_rows, *to_shared


def _by_head(joint: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries with the scalar, and keys, each (h, N, L, E): views of (N, L, 2hE)."""
    query, key = joint.view(*joint.shape[:2], heads, 2, -1).permute(3, 2, 0, 1, 4).unbind()
    return query, key
