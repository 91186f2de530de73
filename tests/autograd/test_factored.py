"""Gradients held as factors: the product in every respect, without being it."""

import copy

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill.autograd.factored import FactoredGradient, factored_gradients, worth_factoring
from crossdistill.nets import MaskNet1d

TOKENS, ROWS, WIDTH, LENGTH = 5, 3, 4, 12


def factors() -> FactoredGradient:
    return FactoredGradient(torch.randn(TOKENS, ROWS, WIDTH), torch.randn(ROWS, LENGTH))


def by_hand(gradient: FactoredGradient) -> Tensor:
    rows = [torch.stack([gradient.left[t, b] for t in range(TOKENS)]).flatten() for b in range(ROWS)]
    return torch.stack([torch.outer(row, gradient.right[b]) for b, row in enumerate(rows)]).sum(0)


def test_it_is_the_sum_of_outer_products() -> None:
    gradient = factors()
    assert gradient.shape == (TOKENS * WIDTH, LENGTH)
    torch.testing.assert_close(gradient.multiplied(), by_hand(gradient))


def test_parts_are_of_whole_tokens() -> None:
    gradient = factors()
    out = torch.empty(2 * WIDTH, LENGTH)
    found = gradient.part(slice(WIDTH, 3 * WIDTH), out)
    torch.testing.assert_close(found, by_hand(gradient)[WIDTH : 3 * WIDTH])
    assert found.data_ptr() == out.data_ptr()


def test_its_norm_needs_no_product() -> None:
    gradient = factors()
    norm = torch.linalg.vector_norm(gradient)
    torch.testing.assert_close(norm, by_hand(gradient).norm())
    torch.testing.assert_close(nn.utils.get_total_norm([gradient, torch.ones(2)]), (norm**2 + 2).sqrt())
    torch.testing.assert_close(torch.linalg.vector_norm(gradient, torch.inf), by_hand(gradient).abs().max())


def test_scaling_keeps_the_factors() -> None:
    gradient = factors()
    whole = by_hand(gradient)
    scaled = gradient * torch.tensor(0.5)
    torch.testing.assert_close(scaled.multiplied(), whole * 0.5)
    assert gradient.mul_(3.0) is gradient
    torch.testing.assert_close(gradient.multiplied(), whole * 3)


def test_anything_else_is_done_to_the_product() -> None:
    gradient = factors()
    torch.testing.assert_close(gradient + 1, by_hand(gradient) + 1)
    torch.testing.assert_close(torch.ones_like(by_hand(gradient)).add_(gradient), 1 + by_hand(gradient))
    with raises(TypeError, "factors"):
        gradient.zero_()
    with raises(TypeError, "factors"):
        torch._foreach_mul_([gradient], 2.0)


@pytest.mark.parametrize(("rows", "factored"), [(1, True), (24, True), (25, False)])
def test_masks_give_factors_where_they_are_smaller_and_wanted(rows: int, factored: bool) -> None:
    mask = MaskNet1d(24, 12)
    plain = copy.deepcopy(mask)
    value = torch.randn(rows, 24)
    with factored_gradients():
        assert not worth_factoring(rows, mask.embed.weight), "it is small"
    with factored_gradients(large_bytes=mask.embed.weight.nbytes):
        assert worth_factoring(rows, mask.embed.weight) == factored
        mask(value).sum().backward()
    assert not worth_factoring(1, mask.embed.weight)
    plain(value).sum().backward()
    found, wanted = mask.embed.weight.grad, plain.embed.weight.grad
    assert isinstance(found, FactoredGradient) == factored
    torch.testing.assert_close(found.multiplied() if isinstance(found, FactoredGradient) else found, wanted)


def test_clipping_works_on_factors() -> None:
    mask = MaskNet1d(24, 12)
    plain = copy.deepcopy(mask)
    value = torch.randn(4, 24)
    with factored_gradients(large_bytes=0):
        mask(value).sum().backward()
    plain(value).sum().backward()
    norms = [nn.utils.clip_grad_norm_(one.parameters(), 1e-3) for one in (mask, plain)]
    torch.testing.assert_close(*norms)
    found = mask.embed.weight.grad
    torch.testing.assert_close(found.multiplied(), plain.embed.weight.grad)
