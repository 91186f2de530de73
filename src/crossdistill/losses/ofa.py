"""One-for-all: a teacher's prediction in which the target counts for more (Hao et al., NeurIPS 2023)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from crossdistill.batch import MISSING_TARGET
from crossdistill.losses.kl import log_probabilities


def ofa(
    student: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    targets: Int64[Tensor, " B"],
    epsilon: float,
    temperature: float,
) -> Float[Tensor, " B"]:
    """Σ_c -[(p_t(c) + y_c)^ε - y_c] · log p_s(c) on softmax(logits / T), in nats: arXiv 2310.19444, equation 9.

    At ε = 1 this is the cross-entropy from the teacher's prediction. A row without a target has y = 0: the teacher's
    prediction to the power ε, and no bonus.

    Args:
        student: logits of a stage of the student.
        teacher: logits; detach them where they teach, nothing is detached here.
        targets: class of each row, or `MISSING_TARGET`.
        epsilon: dimensionless, above 1 sharpens the target.
        temperature: dimensionless, above 0.
    """
    known = (targets != MISSING_TARGET).unsqueeze(1)
    one_hot = functional.one_hot(targets.clamp(min=0), student.shape[1]).to(teacher.dtype) * known
    soft = log_probabilities(teacher, temperature).exp()
    wanted = (soft + one_hot).pow(epsilon) - one_hot
    return -torch.sum(wanted * log_probabilities(student, temperature), dim=1)
