"""Losses: pure functions of tensors with one value per row, in nats unless stated otherwise.

The caller sets the weights of rows and the divisor of the sum. Only losses that compare rows with each other are
scalars of a whole batch: the load balances, the correlations of MLLD, RKD, PKT and SP. Nothing is detached unless the
docstring states it.
"""

from crossdistill.losses.at import attention_transfer
from crossdistill.losses.balance import balance_cv, balance_kl
from crossdistill.losses.collaborative import collaborative_kl, collaborative_terms
from crossdistill.losses.contrast import contrast_logits, contrast_nce, info_nce, log_normaliser, shared_contrast_logits
from crossdistill.losses.correlation import class_correlation, row_correlation
from crossdistill.losses.cross_entropy import cross_entropy
from crossdistill.losses.dkd import other_classes_kl, target_class_kl
from crossdistill.losses.fusion import fused_logits, trusted_coefficients
from crossdistill.losses.hidden_states import barlow_distance, hidden_state_distance
from crossdistill.losses.kdsvd import singular_flow
from crossdistill.losses.kl import distillation_kl, kl_divergence, log_probabilities
from crossdistill.losses.nst import selectivity_transfer
from crossdistill.losses.ofa import ofa
from crossdistill.losses.ofd import normal_margin, partial_distance
from crossdistill.losses.pkt import probabilistic_transfer
from crossdistill.losses.rank import kendall_tau_b, non_target_kl
from crossdistill.losses.review import hierarchical_context
from crossdistill.losses.rkd import rkd_angle, rkd_distance
from crossdistill.losses.routing import routed_kl, top_teachers, weighted_kl
from crossdistill.losses.salience import least_salient, min_max
from crossdistill.losses.sigmoid_kl import sigmoid_kl
from crossdistill.losses.sp import similarity_preserving
from crossdistill.losses.squared_error import squared_error
from crossdistill.losses.standardise import standardised
from crossdistill.losses.task import task_loss
from crossdistill.losses.translate import feature_distance
from crossdistill.losses.vid import gaussian_nll

__all__ = [
    "attention_transfer",
    "balance_cv",
    "balance_kl",
    "barlow_distance",
    "class_correlation",
    "collaborative_kl",
    "collaborative_terms",
    "contrast_logits",
    "contrast_nce",
    "cross_entropy",
    "distillation_kl",
    "feature_distance",
    "fused_logits",
    "gaussian_nll",
    "hidden_state_distance",
    "hierarchical_context",
    "info_nce",
    "kendall_tau_b",
    "kl_divergence",
    "least_salient",
    "log_normaliser",
    "log_probabilities",
    "min_max",
    "non_target_kl",
    "normal_margin",
    "ofa",
    "other_classes_kl",
    "partial_distance",
    "probabilistic_transfer",
    "rkd_angle",
    "rkd_distance",
    "routed_kl",
    "row_correlation",
    "selectivity_transfer",
    "shared_contrast_logits",
    "sigmoid_kl",
    "similarity_preserving",
    "singular_flow",
    "squared_error",
    "standardised",
    "target_class_kl",
    "task_loss",
    "top_teachers",
    "trusted_coefficients",
    "weighted_kl",
]
