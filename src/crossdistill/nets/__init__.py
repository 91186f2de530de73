"""Nets that methods add around students and teachers: masks and gates."""

from crossdistill.nets.gate import GateNet, GateNetDense
from crossdistill.nets.mask import MaskNet1d, MaskNet2d, SpatialReduction, apply_mask, mask_for, mask_width

__all__ = [
    "GateNet",
    "GateNetDense",
    "MaskNet1d",
    "MaskNet2d",
    "SpatialReduction",
    "apply_mask",
    "mask_for",
    "mask_width",
]
