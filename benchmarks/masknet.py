"""The mask network at L = 596, d = 297: forward and backward pass, folded / plain; and the bytes saved for backward.

The folded form is that of the stage `specialise`: gradients are computed in blocks of rows, and that of the projector
stays in its two factors. A second figure includes Adam's step, which multiplies the factors out. A third calls the
folded mask like any module, which computes each block twice and returns the whole gradient. A fourth measures the
library's low-rank mask, which is another network of the same shape.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
from measure import Script, Work, ratios
from reference_way import PlainMask
from torch import Tensor, nn

from crossdistill.autograd.factored import FactoredGradient, factored_gradients
from crossdistill.autograd.immediate import immediately, immediately_in_blocks
from crossdistill.nets import MaskNet1d, low_rank_mask_for
from crossdistill.nets.mask_together import opened_together
from crossdistill.training.optimizer import ChunkedAdam

LENGTH, WIDTH, HEADS = 596, 297, 3
FEW, MANY = 32, 128
"""Numbers of rows for comparing gradients, and for counting saved bytes."""
Loss = Callable[[], Tensor]
Keep = Callable[[Tensor], Tensor]
Form = Callable[[nn.Module, Tensor, Tensor, Keep], Loss]


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def called(mask: nn.Module, value: Tensor, weights: Tensor, _keep: Keep = _identity) -> Loss:
    """The mean over rows of a mask that is called like any module."""
    return lambda: (mask(value) * weights).sum(1).mean()


def by_block(mask: nn.Module, value: Tensor, weights: Tensor, keep: Keep = _identity) -> Loss:
    """The same with gradients computed in blocks; `keep` receives the tensors that are held outside autograd."""
    rows = len(value)

    def compute() -> list[Tensor]:
        opened = opened_together([mask], [value])
        tokens = keep(opened.rows)

        def of_block(block: slice, *inputs: Tensor) -> list[Tensor]:
            return [(torch.sigmoid(opened.logits(*inputs)[0]) * weights[block]).sum(1)]

        return immediately_in_blocks(of_block, tokens, opened.shared, list(opened.blocks()), rows)

    def loss() -> Tensor:
        with factored_gradients():
            return immediately(compute, [list(mask.parameters())], rows)[0].sum() / rows

    return loss


def passes(mask: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer | None = None) -> Work:
    """Forward and backward pass, and a step if there is an optimizer; earlier gradients are cleared."""

    def work() -> None:
        mask.zero_grad(set_to_none=True)
        loss().backward()
        if optimizer is not None:
            optimizer.step()

    return work


def saved_bytes(form: Form, mask: nn.Module, value: Tensor, weights: Tensor) -> int:
    """Peak number of bytes that are saved for the backward pass; each storage counts once, parameters do not."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in mask.parameters()}
    users: dict[int, int] = {}
    sizes: dict[int, int] = {}
    most = 0

    def drop(address: int) -> None:
        users[address] -= 1

    def keep(tensor: Tensor) -> Tensor:
        nonlocal most
        if isinstance(tensor, FactoredGradient):
            # This is a gradient, not a saved value.
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in parameters:
            return tensor
        # This view is alive as long as autograd keeps it.
        view = tensor.view_as(tensor)
        users[address], sizes[address] = users.get(address, 0) + 1, storage.nbytes()
        weakref.finalize(view, drop, address)
        most = max(most, sum(sizes[kept] for kept, count in users.items() if count))
        return view

    loss = form(mask, value, weights, keep)
    with torch.autograd.graph.saved_tensors_hooks(keep, _identity):
        result = loss()
    del result
    return most


def agreement(masks: Sequence[nn.Module], losses: Sequence[Loss]) -> None:
    """Print the largest difference between the gradients of two forms."""
    for mask, loss in zip(masks, losses, strict=True):
        passes(mask, loss)()
    difference = 0.0
    for left, right in zip(*(mask.parameters() for mask in masks), strict=True):
        assert left.grad is not None
        assert right.grad is not None
        difference = max(difference, float((left.grad - right.grad).abs().max() / right.grad.abs().max()))
    print(f"  largest difference of a gradient: {difference:.1e} of its largest entry")


def main() -> None:
    """Measure time and memory of both forms with the same parameters, and of the low-rank mask."""
    script = Script(__file__)
    torch.manual_seed(0)
    rows, rounds = (256, 3) if script.on_cpu else (512, 15)
    folded = MaskNet1d(LENGTH, WIDTH, HEADS).to(script.device)
    plain = PlainMask(LENGTH, WIDTH, HEADS, maps=False).to(script.device)
    plain.load_state_dict(folded.state_dict())
    small = low_rank_mask_for((LENGTH,), HEADS).to(script.device)
    value, weights = torch.randn(2, rows, LENGTH, device=script.device)
    agreement(
        [folded, plain], [form(m, value[:FEW], weights[:FEW]) for form, m in ((by_block, folded), (called, plain))]
    )
    in_blocks, whole = by_block(folded, value, weights), called(plain, value, weights)
    works = [
        passes(plain, whole),
        passes(folded, in_blocks),
        passes(folded, called(folded, value, weights)),
        passes(small, by_block(small, value, weights)),
        passes(folded, in_blocks, ChunkedAdam(folded.parameters(), 1e-6, fused=True)),
        passes(plain, whole, torch.optim.Adam(plain.parameters(), 1e-6, fused=True)),
    ]
    # No warm-up: a slow first call affects one round of several.
    plain_s, folded_s, module_s, low_rank_s, folded_step_s, plain_step_s = script.alternate(works, rounds, warm=0)
    name = f"MaskNet forward and backward at L = {LENGTH}, d = {WIDTH}, {rows} rows"
    script.ratio(f"{name}, folded / plain: time", ratios(folded_s, plain_s), 0.3)
    script.ratio(f"{name}, folded and called like any module / plain: time", ratios(module_s, plain_s), None)
    script.ratio(f"{name}, low rank / plain: time", ratios(low_rank_s, plain_s), None)
    script.ratio(f"{name}, and Adam's step, folded / plain: time", ratios(folded_step_s, plain_step_s), None)
    value, weights = value[:MANY], weights[:MANY]
    name = f"MaskNet at L = {LENGTH}, d = {WIDTH}, folded / plain: bytes saved for backward"
    script.value(name, saved_bytes(by_block, folded, value, weights) / saved_bytes(called, plain, value, weights), 0.1)


if __name__ == "__main__":
    main()
