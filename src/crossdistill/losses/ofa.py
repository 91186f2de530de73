"""One-for-all: cross-entropy with the teacher's prediction sharpened at the target (Hao et al., NeurIPS 2023)."""

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

    At ε = 1 this is the cross-entropy from the teacher's prediction. A row without a target has y = 0: its weights are
    the teacher's probabilities to the power ε.

    Args:
        student: logits of a stage of the student.
        teacher: logits; nothing is detached here.
        targets: class of each row, or `MISSING_TARGET`.
        epsilon: ε, dimensionless; above 1 it sharpens the target.
        temperature: dimensionless, above 0.
    """
    known = (targets != MISSING_TARGET).unsqueeze(1)
    one_hot = functional.one_hot(targets.clamp(min=0), student.shape[1]).to(teacher.dtype) * known
    soft = log_probabilities(teacher, temperature).exp()
    wanted = (soft + one_hot).pow(epsilon) - one_hot
    return -torch.sum(wanted * log_probabilities(student, temperature), dim=1)
