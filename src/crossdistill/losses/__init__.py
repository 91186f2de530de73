"""Losses: pure functions over tensors, a value for each row, in nats unless they say otherwise.

What a row weighs and what the sum is divided by is decided by the caller; only the load balances are scalars of a
whole batch. Nothing is detached unless an argument says so.
"""

from crossdistill.losses.balance import balance_cv, balance_kl
from crossdistill.losses.collaborative import collaborative_kl, collaborative_terms
from crossdistill.losses.cross_entropy import cross_entropy
from crossdistill.losses.kl import distillation_kl, kl_divergence, log_probabilities
from crossdistill.losses.routing import routed_kl, top_teachers, weighted_kl

__all__ = [
    "balance_cv",
    "balance_kl",
    "collaborative_kl",
    "collaborative_terms",
    "cross_entropy",
    "distillation_kl",
    "kl_divergence",
    "log_probabilities",
    "routed_kl",
    "top_teachers",
    "weighted_kl",
]
