"""Gradients that are taken at once: the same to the last bit, and only one graph at a time."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from crossdistill.autograd.immediate import immediately


def two_terms() -> tuple[list[nn.Linear], list[Callable[[], list[Tensor]]]]:
    layers = [nn.Linear(6, 4) for _ in range(2)]
    value = torch.randn(7, 6)
    return layers, [lambda layer=layer: [layer(value).square().sum(1)] for layer in layers]


def gradients(layers: list[nn.Linear]) -> list[Tensor]:
    found = [own.grad.clone() for layer in layers for own in layer.parameters() if own.grad is not None]
    for layer in layers:
        layer.zero_grad()
    return found


@pytest.mark.parametrize(("weight", "exact"), [(1.0, True), (2.0, True), (0.3, False)])
def test_the_gradient_is_that_of_the_plain_sum(weight: float, exact: bool) -> None:
    layers, terms = two_terms()
    total = 13
    plain = [term()[0] for term in terms]
    (torch.stack([value.sum() / total * weight for value in plain]).sum()).backward()
    wanted = gradients(layers)
    eager = [immediately(term, [list(layer.parameters())], total)[0] for layer, term in zip(layers, terms, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(plain, eager, strict=True))
    torch.stack([value.sum() / total * weight for value in eager]).sum().backward()
    for one, other in zip(gradients(layers), wanted, strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_values_of_one_pass_may_be_weighted_apart() -> None:
    layers, terms = two_terms()
    both = immediately(lambda: [term()[0] for term in terms], [list(layer.parameters()) for layer in layers], 7)
    (both[0].sum() / 7 + both[1].sum() * 3 / 7).backward()
    found = gradients(layers)
    (terms[0]()[0].sum() / 7 + terms[1]()[0].sum() * 3 / 7).backward()
    for one, other in zip(found, gradients(layers), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_pass_gives_the_same() -> None:
    layers, terms = two_terms()
    (value,) = immediately(terms[0], [list(layers[0].parameters())], 7)
    loss = value.sum() / 7
    first = torch.autograd.grad(loss, list(layers[0].parameters()), retain_graph=True)
    second = torch.autograd.grad(loss * 2, list(layers[0].parameters()))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one * 2, two)


def test_the_graph_is_gone_when_the_value_is_there() -> None:
    layer = nn.Linear(6, 4)
    held: list[weakref.ref[Tensor]] = []

    def compute() -> list[Tensor]:
        hidden = layer(torch.randn(7, 6))
        held.append(weakref.ref(hidden))
        return [hidden.exp().square().sum(1)]

    (value,) = immediately(compute, [list(layer.parameters())], 7)
    gc.collect()
    assert held[0]() is None
    assert value.requires_grad


def test_a_term_that_no_loss_uses_gives_no_gradient() -> None:
    layers, terms = two_terms()
    values = [immediately(term, [list(layer.parameters())], 7)[0] for layer, term in zip(layers, terms, strict=True)]
    values[0].sum().backward()
    assert all(own.grad is None for own in layers[1].parameters())


def test_no_rows_give_zeros() -> None:
    layer = nn.Linear(6, 4)
    (value,) = immediately(lambda: [layer(torch.zeros(0, 6)).sum(1)], [list(layer.parameters())], 7)
    value.sum().backward()
    assert all(own.grad is not None and not own.grad.any() for own in layer.parameters())


def test_without_gradients_it_is_the_function_itself() -> None:
    layers, terms = two_terms()
    with torch.no_grad():
        (value,) = immediately(terms[0], [list(layers[0].parameters())], 7)
    assert not value.requires_grad
    layers[0].requires_grad_(False)
    (value,) = immediately(terms[0], [list(layers[0].parameters())], 7)
    assert not value.requires_grad


def test_a_parameter_that_is_not_reached_has_no_gradient() -> None:
    layer, other = nn.Linear(6, 4), nn.Linear(2, 2)
    own = [*layer.parameters(), *other.parameters()]
    (value,) = immediately(lambda: [layer(torch.randn(7, 6)).sum(1)], [own], 7)
    value.sum().backward()
    assert all(one.grad is None for one in other.parameters())
    assert all(one.grad is not None for one in layer.parameters())
