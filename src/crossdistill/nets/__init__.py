"""Nets that methods add around students and teachers: masks and gates."""

from crossdistill.nets.gate import GateNet, GateNetDense
from crossdistill.nets.mask import MaskNet1d, MaskNet2d, SpatialReduction, apply_mask, mask_for, mask_width
from crossdistill.nets.mask_low_rank import LowRankMaskNet1d, LowRankMaskNet2d, low_rank_mask_for

__all__ = [
    "GateNet",
    "GateNetDense",
    "LowRankMaskNet1d",
    "LowRankMaskNet2d",
    "MaskNet1d",
    "MaskNet2d",
    "SpatialReduction",
    "apply_mask",
    "low_rank_mask_for",
    "mask_for",
    "mask_width",
]
