"""The mask network at L = 596, d = 297: one forward and backward, folded / plain; and the bytes kept for backward.

Folded is what the stage `specialise` does: gradients are taken block by block of rows, and the projector's stays in its
two factors. A second figure has Adam's step in both, where the factors are multiplied out; a third calls the folded
mask like any module, which computes each block twice and gives the whole gradient; a fourth is the library's low-rank
mask, which is another network of the same shape.
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
"""Rows on which gradients are compared, and on which saved bytes are counted."""
Loss = Callable[[], Tensor]
Keep = Callable[[Tensor], Tensor]
Form = Callable[[nn.Module, Tensor, Tensor, Keep], Loss]


def _just_that(tensor: Tensor) -> Tensor:
    return tensor


def called(mask: nn.Module, value: Tensor, weights: Tensor, _keep: Keep = _just_that) -> Loss:
    """A mean over rows, of the mask called like any module."""
    return lambda: (mask(value) * weights).sum(1).mean()


def by_block(mask: nn.Module, value: Tensor, weights: Tensor, keep: Keep = _just_that) -> Loss:
    """The same, with gradients taken block by block; `keep` is shown what is held meanwhile, unseen by autograd."""
    rows = len(value)

    def compute() -> list[Tensor]:
        opened = opened_together([mask], [value])
        tokens = keep(opened.rows)

        def of_block(block: slice, *given: Tensor) -> list[Tensor]:
            return [(torch.sigmoid(opened.logits(*given)[0]) * weights[block]).sum(1)]

        return immediately_in_blocks(of_block, tokens, opened.shared, list(opened.blocks()), rows)

    def loss() -> Tensor:
        with factored_gradients():
            return immediately(compute, [list(mask.parameters())], rows)[0].sum() / rows

    return loss


def passes(mask: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer | None = None) -> Work:
    """Forward and backward, and a step if there is an optimizer; gradients are dropped before."""

    def work() -> None:
        mask.zero_grad(set_to_none=True)
        loss().backward()
        if optimizer is not None:
            optimizer.step()

    return work


def saved_bytes(form: Form, mask: nn.Module, value: Tensor, weights: Tensor) -> int:
    """Most bytes kept for a backward pass at any time, each memory once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in mask.parameters()}
    users: dict[int, int] = {}
    sizes: dict[int, int] = {}
    most = 0

    def drop(address: int) -> None:
        users[address] -= 1

    def keep(tensor: Tensor) -> Tensor:
        nonlocal most
        if isinstance(tensor, FactoredGradient):
            # It is a gradient already; and its factors are known.
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in own:
            return tensor
        # It lives as long as it is kept.
        seen = tensor.view_as(tensor)
        users[address], sizes[address] = users.get(address, 0) + 1, storage.nbytes()
        weakref.finalize(seen, drop, address)
        most = max(most, sum(sizes[one] for one, count in users.items() if count))
        return seen

    loss = form(mask, value, weights, keep)
    with torch.autograd.graph.saved_tensors_hooks(keep, _just_that):
        result = loss()
    del result
    return most


def agreement(masks: Sequence[nn.Module], losses: Sequence[Loss]) -> None:
    """Say how far the gradients of two forms are apart."""
    for mask, loss in zip(masks, losses, strict=True):
        passes(mask, loss)()
    apart = 0.0
    for one, other in zip(*(mask.parameters() for mask in masks), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        apart = max(apart, float((one.grad - other.grad).abs().max() / other.grad.abs().max()))
    print(f"  greatest difference of a gradient: {apart:.1e} of the largest")


def main() -> None:
    """Time and memory of the two forms with the same parameters, and of the low-rank mask."""
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
    own, theirs = by_block(folded, value, weights), called(plain, value, weights)
    works = [
        passes(plain, theirs),
        passes(folded, own),
        passes(folded, called(folded, value, weights)),
        passes(small, by_block(small, value, weights)),
        passes(folded, own, ChunkedAdam(folded.parameters(), 1e-6, fused=True)),
        passes(plain, theirs, torch.optim.Adam(plain.parameters(), 1e-6, fused=True)),
    ]
    # What is slow for the first time is slow in one round of several.
    plainly, folded_so, as_module, low_rank, stepped, plainly_stepped = script.alternate(works, rounds, warm=0)
    name = f"MaskNet forward and backward at L = {LENGTH}, d = {WIDTH}, {rows} rows"
    script.ratio(f"{name}, folded / plain: time", ratios(folded_so, plainly), 0.3)
    script.ratio(f"{name}, folded and called like any module / plain: time", ratios(as_module, plainly), None)
    script.ratio(f"{name}, low rank / plain: time", ratios(low_rank, plainly), None)
    script.ratio(f"{name}, and Adam's step, folded / plain: time", ratios(stepped, plainly_stepped), None)
    value, weights = value[:MANY], weights[:MANY]
    name = f"MaskNet at L = {LENGTH}, d = {WIDTH}, folded / plain: bytes saved for backward"
    script.value(name, saved_bytes(by_block, folded, value, weights) / saved_bytes(called, plain, value, weights), 0.1)


if __name__ == "__main__":
    main()
