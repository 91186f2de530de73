"""Contrastive representation distillation over a memory bank: noise-contrastive estimation (Tian et al., ICLR 2020).

The caller holds the state (banks, the normaliser); see `crossdistill.nets.memory`.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def contrast_logits(
    anchors: Float[Tensor, "B D"], bank: Float[Tensor, "N D"], candidates: Int64[Tensor, "B K"], temperature: float
) -> Float[Tensor, "B K"]:
    """Inner products of each anchor with its candidates' entries in the bank, over the temperature; no unit.

    Either the entries are gathered, or all N products are computed and indexed, whichever needs less memory.
    """
    if len(bank) <= candidates.shape[1] * bank.shape[1]:
        return (anchors @ bank.T).gather(1, candidates) / temperature
    return torch.einsum("bd,bkd->bk", anchors, bank[candidates]) / temperature


def log_normaliser(logits: Float[Tensor, "B K"], rows: int) -> Float[Tensor, ""]:
    """Log Z = log(N · mean of the exponentials), which the released code estimates on its first batch."""
    return math.log(rows) + torch.logsumexp(logits.flatten(), 0) - math.log(logits.numel())


def shared_contrast_logits(
    anchors: Float[Tensor, "B D"],
    bank: Float[Tensor, "N D"],
    positive: Int64[Tensor, " B"],
    negatives: Int64[Tensor, " S"],
    kept: Bool[Tensor, "B S"],
    temperature: float,
) -> Float[Tensor, "B S+1"]:
    """As `contrast_logits`, for negatives that the rows of a batch share: one product of matrices, B x D by D x S.

    Column 0 is the positive; a negative that a row does not keep has the logit -inf, so that its exponential is 0.
    """
    first = (anchors * bank[positive]).sum(1, keepdim=True)
    others = (anchors @ bank[negatives].T).masked_fill(~kept, -torch.inf)
    return torch.cat([first, others], dim=1) / temperature


def contrast_nce(
    logits: Float[Tensor, "B K"],
    log_z: Float[Tensor, ""],
    rows: int,
    epsilon: float = 1e-7,
    negatives: int | None = None,
) -> Float[Tensor, " B"]:
    """-log P(drawn from the data) for column 0, -log P(noise) for the others, in nats: arXiv 1910.10699, equation 17.

    With x = exp(logits) / Z and uniform noise over the N rows: x_0 / (x_0 + M / N + ε) for the positive,
    (M / N) / (x_k + M / N + ε) for the M negatives. Computed with logs, so that no temperature overflows.

    Args:
        logits: column 0 is the positive, the M others are negatives.
        log_z: log of the normaliser, a constant.
        rows: N, rows of the bank.
        epsilon: ε; the default is the released code's.
        negatives: M, where other columns are masked (-inf) and add nothing; by default all columns but the first.
    """
    masked = 0 if negatives is None else logits.shape[1] - 1 - negatives
    negatives = logits.shape[1] - 1 - masked
    noise = negatives / rows
    log_x = logits - log_z.detach()
    joined = torch.logaddexp(log_x, torch.full_like(log_x, math.log(noise + epsilon)))
    loss = joined.sum(1) - log_x[:, 0] - negatives * math.log(noise)
    return loss - masked * math.log(noise + epsilon) if masked else loss


def info_nce(
    logits: Float[Tensor, "B K"], positive: Bool[Tensor, "B K"], kept: Bool[Tensor, "B K"]
) -> Float[Tensor, " B"]:
    """-log of the softmax of the one positive column of each row, among those and the `kept` ones, in nats.

    van den Oord et al., 2018, arXiv 1807.03748, equation 4.
    """
    seen = logits.masked_fill(~(positive | kept), -torch.inf)
    return seen.logsumexp(1) - logits.where(positive, 0.0).sum(1)
