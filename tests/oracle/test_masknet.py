"""The folded mask network against the plain one: embed, PyTorch's own attention, Linear(d, 1), sigmoid."""

import pytest
import torch
from torch import Tensor, nn

from crossdistill.nets import MaskNet1d, MaskNet2d

CONFIGURATIONS = [  # length, width, heads
    (24, 12, 3),
    (12, 6, 3),
    (7, 3, 3),
    (10, 5, 1),
    (16, 8, 4),
    (9, 7, 7),
    (1, 2, 1),
]


class PlainMask(nn.Module):
    """As the paper writes it, on the same parameters."""

    def __init__(self, mask: MaskNet1d | MaskNet2d) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, value: Tensor) -> Tensor:
        vector = self.mask.spatial_reduce(value) if isinstance(self.mask, MaskNet2d) else value.flatten(1)
        tokens = self.mask.embed(vector).reshape(len(value), vector.shape[1], -1)
        attended, _ = self.mask.mha(tokens, tokens, tokens, need_weights=True)
        logits: Tensor = self.mask.fc(attended)
        return torch.sigmoid(logits.squeeze(-1))


def _randomised(mask: MaskNet1d | MaskNet2d) -> MaskNet1d | MaskNet2d:
    """Larger weights and biases than at the start (PyTorch's attention starts with zero biases), so that all matter."""
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.normal_(std=0.7)
    return mask.double()


def _with_gradients(module: nn.Module, value: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    value = value.clone().requires_grad_()
    module.zero_grad()
    result = module(value)
    (result * weights).sum().backward()
    gradients = {name.removeprefix("mask."): p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert value.grad is not None
    return result.detach(), {name: grad.clone() for name, grad in gradients.items()} | {"input": value.grad}


def _compare(mask: MaskNet1d | MaskNet2d, value: Tensor) -> None:
    weights = torch.randn(len(value), mask.embed.in_features, dtype=value.dtype)
    folded, folded_gradients = _with_gradients(mask, value, weights)
    plain, plain_gradients = _with_gradients(PlainMask(mask), value, weights)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-13)
    assert set(folded_gradients) == set(plain_gradients)
    assert set(folded_gradients) == {name for name, _ in mask.named_parameters()} | {"input"}
    for name, wanted in plain_gradients.items():
        largest = float(wanted.abs().max())
        assert float((folded_gradients[name] - wanted).abs().max()) <= 1e-11 * largest + 1e-14, name


@pytest.mark.parametrize(("length", "width", "heads"), CONFIGURATIONS)
@pytest.mark.parametrize("rows", [1, 5])
def test_vector_mask_equals_the_plain_form(length: int, width: int, heads: int, rows: int) -> None:
    mask = _randomised(MaskNet1d(length, width, heads))
    _compare(mask, torch.randn(rows, length, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "width", "heads"), CONFIGURATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_map_mask_equals_the_plain_form(channels: int, width: int, heads: int, training: bool) -> None:
    mask = _randomised(MaskNet2d(channels, width, heads)).train(training)
    _compare(mask, torch.randn(3, channels, 7, 4, dtype=torch.float64))


def test_single_precision_agrees_within_rounding() -> None:
    mask = MaskNet1d(84, 42, 3)
    value = torch.randn(8, 84)
    torch.testing.assert_close(mask(value), PlainMask(mask)(value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "heads"), [(6, 3), (3, 3), (14, 2), (42, 3)])
def test_no_attention_matrix_is_stored(width: int, heads: int, dtype: torch.dtype) -> None:
    length, rows = 96, 16
    mask = MaskNet1d(length, width, heads).to(dtype)
    own = {id(parameter) for parameter in mask.parameters()}
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mask(torch.randn(rows, length, dtype=dtype))
    assert saved
    # Tokens are the largest thing that is kept, once; of queries, keys and weights nothing is.
    tokens = rows * length * width
    assert max(saved) <= max(tokens, length * length * width)
    assert sum(saved) <= tokens + rows * length * (4 + 2 * heads) + 20 * width**2 + 1000
