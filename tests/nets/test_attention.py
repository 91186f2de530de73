"""The masks' attention: in blocks of any size, for several networks, in half precision, and what it keeps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.nets import attention
from crossdistill.nets.attention import attend, embedded, unit_logits

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


@pytest.mark.parametrize("most", [1, 2 * GROUPS * LENGTH**2, 2**19])
@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_any_size_agree_with_the_plain_form(monkeypatch: pytest.MonkeyPatch, most: int, groups: int) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", most)
    inputs = draws(groups)
    found, wanted = attend(*inputs, HEADS), plain(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(found, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_gradients_are_those_of_differences() -> None:
    inputs = draws(1)
    assert torch.autograd.gradcheck(lambda *given: attend(*given, HEADS), inputs)


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_scores_neither_overflow_nor_vanish(size: float) -> None:
    inputs = draws(dtype=torch.float32)
    with torch.no_grad():
        inputs[0] *= size
    found = attend(*inputs, HEADS)
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
    wanted = unit_logits(vector, embed, mha, fc)
    exact = gradients(wanted, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found = unit_logits(vector, embed, mha, fc)
    assert found.dtype == torch.float32
    assert float((found - wanted).detach().abs().max()) < 0.02
    for one, other in zip(gradients(found, parameters), exact, strict=True):
        assert one.dtype == torch.float32
        assert float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.99
