"""Fusion of the logits of several classifiers into one prediction: RichKD (arXiv 2511.09286)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses.kl import log_probabilities


def fused_logits(logits: Float[Tensor, "K B C"], coefficients: Float[Tensor, "K B"]) -> Float[Tensor, "B C"]:
    """The sum over K parts of coefficient · logits, row by row: z_F = α · z_T + (1 - α) · z_C for two parts."""
    return (logits * coefficients.unsqueeze(2)).sum(0)


def trusted_coefficients(logits: Float[Tensor, "K B C"], coefficients: Float[Tensor, "K B"]) -> Float[Tensor, "K B"]:
    """Coefficients by row: a part counts where it is confident and agrees with part 0, which takes what is left.

    With p_k the softmax of part k, c_k its coefficient, H the entropy and C classes, the coefficient of part k > 0 is
    c_k · (1 - H(p_k) / log C) · Σ_j √(p_0j · p_kj). The first factor is 0 for a uniform prediction and 1 for a certain
    one; the second (the Bhattacharyya coefficient) is 0 without a common class and 1 for equal predictions. The sum of
    a row's coefficients stays what it was. Not part of the published method.
    """
    logs = torch.stack([log_probabilities(part, 1.0) for part in logits])
    confidence = 1 + (logs.exp() * logs).sum(2) / math.log(logits.shape[2])
    agreement = ((logs[:1] + logs) / 2).exp().sum(2)
    others = (coefficients * confidence * agreement)[1:]
    return torch.cat([coefficients.sum(0, keepdim=True) - others.sum(0, keepdim=True), others])
