"""Masks of equal shape in one pass: the values and gradients of each by itself, and what stays apart."""

import copy

import pytest
import torch
from torch import Tensor, nn

from crossdistill.nets import low_rank_mask_for, mask_for
from crossdistill.nets.mask_together import masks_of, together


def same_gradients(masks: list[nn.Module], values: list[Tensor], tolerance: float) -> None:
    alone = copy.deepcopy(masks)
    weights = [torch.randn(len(value), value.shape[1], dtype=value.dtype) for value in values]
    found = masks_of(masks, values)
    wanted = [mask(value) for mask, value in zip(alone, values, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for outputs in (found, wanted):
        torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum().backward()
    for one, other in zip(masks, alone, strict=True):
        for (name, own), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(own.grad, theirs.grad, rtol=tolerance, atol=tolerance, msg=name)
        for (name, own), (_, theirs) in zip(one.named_buffers(), other.named_buffers(), strict=True):
            assert torch.equal(own, theirs), f"{name} moved otherwise"


@pytest.mark.parametrize("shape", [(24,), (12, 1, 1), (12, 5, 4)])
@pytest.mark.parametrize("number", [2, 3])
def test_one_pass_equals_the_masks_one_by_one(shape: tuple[int, ...], number: int) -> None:
    masks = [mask_for(shape).double() for _ in range(number)]
    values = [torch.randn(5, *shape, dtype=torch.float64) for _ in range(number)]
    same_gradients(list(masks), values, 1e-12)


def test_single_precision_agrees_to_rounding() -> None:
    masks = [mask_for((64,)) for _ in range(2)]
    same_gradients(list(masks), [torch.randn(32, 64) for _ in range(2)], 1e-6)


def test_parameters_keep_their_names_and_owners() -> None:
    masks = nn.ModuleDict({"one": mask_for((24,)), "two": mask_for((24,))})
    before = {name: value.data_ptr() for name, value in masks.state_dict().items()}
    masks_of(list(masks.values()), [torch.randn(3, 24)] * 2)
    assert {name: value.data_ptr() for name, value in masks.state_dict().items()} == before


def test_equal_shapes_go_together_and_others_alone() -> None:
    shapes = [(24,), (12,), (24,), (12, 5, 4), (12, 3, 3), (24,)]
    masks = [mask_for(shape) for shape in shapes] + [low_rank_mask_for((24,))]
    values = [torch.zeros(4, *shape) for shape in [*shapes, (24,)]]
    # Maps of one number of channels have masks of one shape, whatever their height and width; vectors join them.
    assert together(masks, values) == [[0, 2, 5], [1, 3, 4], [6]]
    other_heads = [mask_for((24,), heads=3), mask_for((24,), heads=4)]
    assert together(other_heads, [torch.zeros(4, 24)] * 2) == [[0], [1]]
    assert together(masks[:1] * 2, [torch.zeros(4, 24), torch.zeros(3, 24)]) == [[0], [1]], "other rows"


def test_masks_that_are_too_large_together_run_one_after_another() -> None:
    masks, values = [mask_for((24,)) for _ in range(4)], [torch.zeros(8, 24)] * 4
    one = 4 * 24 * 12 * (2 * 24 + 2 * 8)
    assert together(masks, values, limit=one) == [[0], [1], [2], [3]]
    assert together(masks, values, limit=2 * one) == [[0, 1], [2, 3]]
    assert together(masks, values, limit=1) == [[0], [1], [2], [3]], "one that is too large alone runs all the same"
    assert together(masks, values) == [[0, 1, 2, 3]]


def test_a_mask_alone_is_what_it_is() -> None:
    mask, value = mask_for((24,)), torch.randn(3, 24)
    assert torch.equal(masks_of([mask], [value])[0], mask(value))


@pytest.mark.parametrize("shape", [(24,), (12, 5, 5)])
@pytest.mark.parametrize("at_once", [True, False])
def test_no_rows_give_no_masks_and_a_gradient_of_zero(shape: tuple[int, ...], at_once: bool) -> None:
    masks = [mask_for(shape).eval() for _ in range(2)]
    rows = torch.zeros(0, *shape)
    found = masks_of(masks, [rows, rows]) if at_once else [mask(rows) for mask in masks]
    assert [tuple(one.shape) for one in found] == [(0, shape[0])] * 2
    torch.stack([one.sum() for one in found]).sum().backward()
    assert all(mask.embed.weight.grad is not None and not mask.embed.weight.grad.any() for mask in masks)
