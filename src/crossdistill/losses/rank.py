"""C2KD's gate and loss: rank correlation of two predictions, and their divergence without the target."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import MISSING_TARGET
from crossdistill.losses.kl import kl_divergence, log_probabilities

NUMBERS_AT_ONCE = 2**24


@torch.no_grad()
def kendall_tau_b(one: Float[Tensor, "B C *pixels"], other: Float[Tensor, "B C *pixels"]) -> Float[Tensor, " B"]:
    """Kendall's τ_b between two orders of the classes, in [-1, 1], no unit; dense logits as the mean over pixels.

    (concordant - discordant) / sqrt((n0 - ties) · (n0 - ties)) over the n0 pairs of classes; 0 if all values of
    one side are equal. No gradient.
    """
    rows, classes = one.shape[:2]
    first, second = (value.movedim(1, -1).reshape(-1, classes) for value in (one, other))
    size = max(1, NUMBERS_AT_ONCE // classes**2)
    parts = [_tau(*pair) for pair in zip(first.split(size), second.split(size), strict=True)]
    return torch.cat(parts).view(rows, -1).mean(1) if rows else one.new_zeros(0)


def non_target_kl(
    student: Float[Tensor, "B C *pixels"], teacher: Float[Tensor, "B C *pixels"], targets: Int64[Tensor, "B *pixels"]
) -> Float[Tensor, " B"]:
    """KL(teacher ‖ student) of softmaxes in which the target's logit is set to 0, in nats; the mean over pixels.

    C2KD (Huo et al., CVPR 2024) as released: the entry is set to 0, not removed from the softmax. Without a target
    all logits are unchanged. Nothing is detached here.
    """
    known = (targets != MISSING_TARGET).unsqueeze(1)
    numbers = torch.arange(student.shape[1], device=student.device).view(1, -1, *[1] * (student.ndim - 2))
    target = (numbers == targets.unsqueeze(1)) & known
    mine, theirs = (log_probabilities(torch.where(target, 0.0, value), 1.0) for value in (student, teacher))
    return kl_divergence(theirs, mine)


def _tau(first: Tensor, second: Tensor) -> Tensor:
    signs = [torch.sign(value.unsqueeze(1) - value.unsqueeze(2)) for value in (first, second)]
    # Each pair counts twice in numerator and denominator, which cancels.
    agreement = (signs[0] * signs[1]).sum(dim=(1, 2))
    untied = [sign.abs().sum(dim=(1, 2)) for sign in signs]
    scale = torch.sqrt(untied[0] * untied[1])
    return torch.where(scale > 0, agreement / scale.clamp(min=1), 0.0)
