"""The mask network at L = 596, d = 297: one forward and backward, folded / plain; and the bytes kept for backward.

Beside it the library's low-rank mask, which is another network of the same shape.
"""

import torch
from measure import Script, Work, ratios
from reference_way import PlainMask
from torch import Tensor, nn

from crossdistill.nets import MaskNet1d, low_rank_mask_for

LENGTH, WIDTH, HEADS = 596, 297, 3


def passes(mask: nn.Module, value: Tensor, weights: Tensor) -> Work:
    """Forward and backward; gradients are dropped before, as an optimizer's step does."""

    def work() -> None:
        mask.zero_grad(set_to_none=True)
        (mask(value) * weights).sum().backward()

    return work


def saved_bytes(mask: nn.Module, value: Tensor) -> int:
    """Bytes kept between forward and backward, each memory once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in mask.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = mask(value)
    size = sum(kept.values())
    del result
    return size


def main() -> None:
    """Time and memory of the two forms with the same parameters, their greatest difference, and the low-rank mask."""
    script = Script(__file__)
    torch.manual_seed(0)
    rows, rounds = (64, 5) if script.on_cpu else (512, 15)
    folded = MaskNet1d(LENGTH, WIDTH, HEADS).to(script.device)
    plain = PlainMask(LENGTH, WIDTH, HEADS, maps=False).to(script.device)
    plain.load_state_dict(folded.state_dict())
    value, weights = torch.randn(2, rows, LENGTH, device=script.device)
    with torch.no_grad():
        print(f"  greatest difference of a mask: {float((folded(value) - plain(value)).abs().max()):.1e}")
    small = low_rank_mask_for((LENGTH,), HEADS).to(script.device)
    ours, theirs, low_rank = script.alternate([passes(mask, value, weights) for mask in (folded, plain, small)], rounds)
    name = f"MaskNet forward and backward at L = {LENGTH}, d = {WIDTH}"
    script.ratio(f"{name}, folded / plain: time", ratios(ours, theirs), 0.3)
    script.ratio(f"{name}, low rank / plain: time", ratios(low_rank, theirs), None)
    name = f"MaskNet at L = {LENGTH}, d = {WIDTH}, folded / plain: bytes saved for backward"
    script.value(name, saved_bytes(folded, value) / saved_bytes(plain, value), 0.1)


if __name__ == "__main__":
    main()
