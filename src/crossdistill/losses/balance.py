"""Load balance: penalties for a gate that selects the same teacher for most rows.

Both forms compare rows with each other: they are scalars of a whole batch (not sums over rows) and need the rows of
all ranks at once. Without any row they are 0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses.kl import log_probabilities


def balance_kl(gate_logits: Float[Tensor, "B K"], divide_by_teachers: bool = False) -> Float[Tensor, ""]:
    """KL(uniform ‖ mean gate) over K teachers, in nats; a scalar of the batch. MST-Distill, equation 17.

    Args:
        gate_logits: gate values before the softmax, one row per sample.
        divide_by_teachers: divide by K, as the released code does (`batchmean` of a vector).
    """
    rows, teachers = gate_logits.shape
    if rows == 0:
        return gate_logits.sum()
    log_mean = torch.logsumexp(log_probabilities(gate_logits, temperature=1.0), dim=0) - math.log(rows)
    divergence = -log_mean.mean() - math.log(teachers)
    return divergence / teachers if divide_by_teachers else divergence


def balance_cv(gate_logits: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Coefficient of variation of the K teachers' loads (column sums of the gate); a scalar of the batch, without unit.

    The standard deviation is the unbiased one, as in MST-Distill's ablation and its released code. For K = 1 it
    is 0.
    """
    rows, teachers = gate_logits.shape
    if rows == 0:
        return gate_logits.sum()
    load = log_probabilities(gate_logits, temperature=1.0).exp().sum(dim=0)
    return load.std(correction=1) / load.mean() if teachers > 1 else load.sum() * 0.0
