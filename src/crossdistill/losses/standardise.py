"""Logit standardisation: z-scores, which remove the scale of a prediction (Sun et al., CVPR 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor


def standardised(logits: Float[Tensor, "B C *pixels"]) -> Float[Tensor, "B C *pixels"]:
    """z-score of each row (each pixel) over its C classes: (z - mean) / (1e-7 + standard deviation, ddof 1).

    arXiv 2403.01427, algorithm 1. The epsilon is the released code's; half precision is converted to float32.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = exact - exact.mean(dim=1, keepdim=True)
    if centred.numel() == 0:
        # torch warns about the deviation of no rows.
        return centred
    return centred / (1e-7 + exact.std(dim=1, keepdim=True))
