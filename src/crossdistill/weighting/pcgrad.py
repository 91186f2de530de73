"""Gradient surgery: projection of conflicting task gradients (Yu et al., NeurIPS 2020)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from crossdistill.weighting.separate import Separate
from crossdistill.weighting.weighting import Turn, Weighting, WeightingConfig


class PCGrad(Separate):
    """Gradient surgery, Yu et al., NeurIPS 2020: removes conflicting components of the groups' gradients.

    Each gradient is compared with the others in a random order (a function of `seed` and the step, so equal on all
    ranks and after a resume); for a negative inner product, its component along the other's original gradient is
    removed.
    """

    remembers: ClassVar[bool] = False

    def __init__(self, groups: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__(groups)
        self.seed = seed

    def orders(self, size: int, step: int) -> list[list[int]]:
        """For each of `size` groups, the order of the others in this step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = [torch.randperm(size, generator=generator).tolist() for _ in range(size)]
        return [[other for other in order if other != group] for group, order in enumerate(drawn)]

    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """The sum of the projected gradients.

        Every projection is in the span of the G gradients, so it is computed on coefficients with the G by G inner
        products: the P numbers are read twice, whatever G.
        """
        products = gradients @ gradients.T
        tiny = torch.finfo(products.dtype).tiny
        coefficients = torch.eye(len(products), dtype=products.dtype, device=products.device)
        for group, order in enumerate(self.orders(len(products), turn.step)):
            for other in order:
                conflict = (coefficients[group] @ products[:, other]).clamp_max(0.0)
                coefficients[group, other] -= conflict / products[other, other].clamp_min(tiny)
        return coefficients.sum(0) @ gradients


class PCGradConfig(WeightingConfig):
    """Gradient surgery."""

    makes: ClassVar[type[Weighting]] = PCGrad
    name: Literal["pcgrad"] = "pcgrad"
    seed: int = Field(0, ge=0, description="of the order in which gradients are compared")
