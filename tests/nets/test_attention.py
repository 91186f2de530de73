"""The masks' attention: in blocks of any size, for several networks, in half precision, and what it keeps."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.autograd.immediate import immediately, immediately_in_blocks
from crossdistill.nets import attention, mask_for
from crossdistill.nets.attention import embedded, joint_weight, opened, opened_tokens
from crossdistill.nets.mask_together import opened_together

GROUPS, ROWS, LENGTH, WIDTH, HEADS = 2, 5, 9, 6, 3


def draws(groups: int = GROUPS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [
        (groups, ROWS, LENGTH, WIDTH),
        (groups, 3 * WIDTH, WIDTH),
        (groups, 3 * WIDTH),
        (groups, WIDTH, WIDTH),
        (groups, 1, WIDTH),
    ]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def attend(tokens: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, fc_weight: Tensor) -> Tensor:
    weight = joint_weight(in_weight, in_bias, out_weight, fc_weight, HEADS)
    return opened_tokens(tokens, weight, tokens.new_zeros(1), HEADS).all_logits()


def plain(tokens: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, fc_weight: Tensor) -> Tensor:
    """The same out of PyTorch's own softmax, with all weights in memory."""
    found = []
    for group in range(len(tokens)):
        query, key, value = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in functional.linear(tokens[group], in_weight[group], in_bias[group]).chunk(3, dim=2)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / (WIDTH / HEADS) ** 0.5, dim=3)
        joined = (weights @ value).transpose(1, 2).flatten(2)
        found.append((joined @ out_weight[group].T @ fc_weight[group].T).squeeze(2))
    return torch.stack(found)


def gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return list(torch.autograd.grad((result * weights).sum(), inputs))


@pytest.mark.parametrize("most", [1, 2 * GROUPS * HEADS * LENGTH**2, 2**19])
@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_any_size_agree_with_the_plain_form(monkeypatch: pytest.MonkeyPatch, most: int, groups: int) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", most)
    inputs = draws(groups)
    found, wanted = attend(*inputs), plain(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(found, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_gradients_are_those_of_differences() -> None:
    inputs = draws(1)
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_scores_neither_overflow_nor_vanish(size: float) -> None:
    inputs = draws(dtype=torch.float32)
    with torch.no_grad():
        inputs[0] *= size
    found = attend(*inputs)
    assert found.isfinite().all()
    assert all(one.isfinite().all() for one in gradients(found, inputs))
    # A mean of values is never larger than the largest of them.
    assert float(found.detach().abs().max()) <= 3 * size * WIDTH**3


@pytest.mark.parametrize("needs", [True, False])
def test_tokens_are_what_a_linear_layer_gives(needs: bool) -> None:
    layer = nn.Linear(LENGTH, LENGTH * WIDTH).double()
    vector = torch.randn(ROWS, LENGTH, dtype=torch.float64, requires_grad=needs)
    found = embedded(vector, layer.weight, layer.bias)
    wanted = layer(vector).view(ROWS, LENGTH, WIDTH)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    inputs = [layer.weight, layer.bias, *([vector] if needs else [])]
    for one, other in zip(gradients(found, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_half_precision_is_close_and_keeps_the_softmax_exact() -> None:
    embed, mha, fc = nn.Linear(60, 60 * 30), nn.MultiheadAttention(30, 3), nn.Linear(30, 1)
    vector = torch.randn(8, 60)
    parameters = [*embed.parameters(), mha.in_proj_weight, mha.out_proj.weight, fc.weight]
    wanted = opened(vector, embed, mha, fc).all_logits()
    exact = gradients(wanted, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found = opened(vector, embed, mha, fc).all_logits()
    assert found.dtype == torch.float32
    assert float((found - wanted).detach().abs().max()) < 0.02
    for one, other in zip(gradients(found, parameters), exact, strict=True):
        assert one.dtype == torch.float32
        assert float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.99


@pytest.mark.parametrize("most", [1, 2 * HEADS * 24**2, 2**19])
@pytest.mark.parametrize(("number", "shape"), [(1, (24,)), (2, (24,)), (3, (24, 5, 4))])
def test_gradients_taken_block_by_block_are_the_same(
    monkeypatch: pytest.MonkeyPatch, most: int, number: int, shape: tuple[int, ...]
) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", most)
    masks = [mask_for(shape).double() for _ in range(number)]
    values = [torch.randn(ROWS, *shape, dtype=torch.float64) for _ in masks]
    weights = torch.randn(number, ROWS, 24, dtype=torch.float64)
    parameters = [list(mask.parameters()) for mask in masks]

    def compute() -> list[Tensor]:
        passes = opened_together(masks, values)

        def of_block(block: slice, *given: Tensor) -> list[Tensor]:
            return list((torch.sigmoid(passes.logits(*given)) * weights[:, block]).sum(2).unbind())

        return immediately_in_blocks(of_block, passes.rows, passes.shared, list(passes.blocks()), ROWS)

    found = immediately(compute, parameters, ROWS)
    wanted = [(mask(value) * weight).sum(1) for mask, value, weight in zip(masks, values, weights, strict=True)]
    flat = [one for own in parameters for one in own]
    # Each network's values with a weight of their own.
    sums = [torch.stack([v.sum() * (k + 1) for k, v in enumerate(of)]).sum() / ROWS for of in (found, wanted)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(total, flat) for total in sums), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_block_by_block_one_block_is_kept_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", 1)
    mask, held = mask_for((24,)), [0, 0]

    def pack(value: Tensor) -> Tensor:
        if value.shape == (HEADS, 24, 24):
            held[0] += 1
            held[1] = max(held)
            weakref.finalize(value, lambda: held.__setitem__(0, held[0] - 1))
        return value

    def compute() -> list[Tensor]:
        passes = opened_together([mask], [torch.randn(ROWS, 24)])
        return immediately_in_blocks(
            lambda _, *given: [passes.logits(*given).sum((0, 2))], passes.rows, passes.shared, list(passes.blocks()), 5
        )

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        immediately(compute, [list(mask.parameters())], ROWS)
    assert held == [0, 1], "attention weights that are held in the end, and at most"
