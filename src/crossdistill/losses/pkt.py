"""Probabilistic knowledge transfer: divergence of similarity distributions (Passalis and Tefas, ECCV 2018)."""

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-7


def probabilistic_transfer(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """Mean over B x B of q_t · log(q_t / q_s), q = row-normalised (cosine + 1) / 2; a scalar of the batch, in nats.

    arXiv 1803.10837, equation 8, with the released code's epsilons of 1e-7. Rows of all ranks are needed at once.
    Nothing is detached here; detach the teacher's features.
    """
    if len(student) == 0:
        return student.sum()
    mine, theirs = _neighbours(student), _neighbours(teacher)
    return torch.mean(theirs * torch.log((theirs + EPSILON) / (mine + EPSILON)))


def _neighbours(features: Tensor) -> Tensor:
    directions = features / (features.norm(dim=1, keepdim=True) + EPSILON)
    closeness: Tensor = (directions @ directions.T + 1) / 2
    return closeness / closeness.sum(1, keepdim=True)
