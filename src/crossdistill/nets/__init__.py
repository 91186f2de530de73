"""Networks that methods add to students and teachers: masks, gates, projectors, regressors, proxies, memories."""

from crossdistill.nets.fill import Fill
from crossdistill.nets.fused_embedding import FusedEmbedding
from crossdistill.nets.gate import GateNet, GateNetDense
from crossdistill.nets.mask import (
    MaskNet1d,
    MaskNet2d,
    MaskNetTokens,
    SpatialReduction,
    apply_mask,
    mask_for,
    mask_width,
)
from crossdistill.nets.mask_low_rank import LowRankMaskNet1d, LowRankMaskNet2d, LowRankMaskNetTokens, low_rank_mask_for
from crossdistill.nets.memory import Memory
from crossdistill.nets.norm import JointNorm, Layers
from crossdistill.nets.projector import UnitEmbedding, logit_projector
from crossdistill.nets.proxy import proxy_for
from crossdistill.nets.regressor import ChannelRegressor, regressor
from crossdistill.nets.review import Review

__all__ = [
    "ChannelRegressor",
    "Fill",
    "FusedEmbedding",
    "GateNet",
    "GateNetDense",
    "JointNorm",
    "Layers",
    "LowRankMaskNet1d",
    "LowRankMaskNet2d",
    "LowRankMaskNetTokens",
    "MaskNet1d",
    "MaskNet2d",
    "MaskNetTokens",
    "Memory",
    "Review",
    "SpatialReduction",
    "UnitEmbedding",
    "apply_mask",
    "logit_projector",
    "low_rank_mask_for",
    "mask_for",
    "mask_width",
    "proxy_for",
    "regressor",
]
