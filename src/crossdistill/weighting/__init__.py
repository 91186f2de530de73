"""Weightings of a step's terms: plain sum, learned or measured weights, gradient surgery, two momenta.

One weighting per file, with one line each in `AnyWeighting`.
"""

from typing import Annotated

from pydantic import Field

from crossdistill.weighting.dot import Dot, DotConfig
from crossdistill.weighting.gradnorm import GradNorm, GradNormConfig
from crossdistill.weighting.loss_ratio import LossRatio, LossRatioConfig
from crossdistill.weighting.pcgrad import PCGrad, PCGradConfig
from crossdistill.weighting.separate import Separate
from crossdistill.weighting.uncertainty import Uncertainty, UncertaintyConfig
from crossdistill.weighting.weighting import Change, Sum, SumConfig, Turn, Weighting, WeightingConfig

__all__ = [
    "AnyWeighting",
    "Change",
    "Dot",
    "DotConfig",
    "GradNorm",
    "GradNormConfig",
    "LossRatio",
    "LossRatioConfig",
    "PCGrad",
    "PCGradConfig",
    "Separate",
    "Sum",
    "SumConfig",
    "Turn",
    "Uncertainty",
    "UncertaintyConfig",
    "Weighting",
    "WeightingConfig",
]

AnyWeighting = Annotated[
    SumConfig | UncertaintyConfig | LossRatioConfig | GradNormConfig | PCGradConfig | DotConfig,
    Field(discriminator="name"),
]
"""The type of a recipe's field: pydantic selects the class by `name`, and lists the names for an unknown one."""
