"""ReviewKD's fusion of deep features into shallower ones (Chen et al., CVPR 2021)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.nets.norm import Gather, JointNorm, Layers, alone
from crossdistill.nets.regressor import resized

WIDEST = 512
"""Most channels between the two convolutions of a fusion."""


class Review(nn.Module):
    """One attention-based fusion for each stage; the output of a stage has its teacher's channels and size.

    `mine` and `theirs` are shapes (C, H, W), shallow first; the intermediate channels are those of the deepest of
    `mine`, but at most `WIDEST`.
    """

    def __init__(self, mine: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        between = min(WIDEST, mine[-1][0])
        deepest = len(mine) - 1
        self.stages = nn.ModuleList(
            Fusion(shape[0], between, wanted, fuses=stage < deepest)
            for stage, (shape, wanted) in enumerate(zip(mine, theirs, strict=True))
        )

    def forward(self, features: Sequence[Float[Tensor, "B ..."]], gather: Gather = alone) -> list[Tensor]:
        """Fused features, shallow first."""
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for stage, feature in zip(reversed(self.stages), reversed(features), strict=True):
            out, deeper = stage(feature, deeper, gather)
            fused.append(out)
        return fused[::-1]


class Fusion(nn.Module):
    """Pointwise to the intermediate channels, attention-weighted sum with the deeper residual, 3x3 to the teacher's."""

    def __init__(self, channels: int, between: int, theirs: tuple[int, ...], *, fuses: bool) -> None:
        super().__init__()
        self.size = theirs[1:]
        inner = nn.Conv2d(channels, between, 1, bias=False)
        outer = nn.Conv2d(between, theirs[0], 3, padding=1, bias=False)
        self.inner = Layers(inner, JointNorm(between))
        self.outer = Layers(outer, JointNorm(theirs[0]))
        self.attention = nn.Conv2d(2 * between, 2, 1) if fuses else None
        for layer in (inner, outer):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(
        self,
        feature: Float[Tensor, "B C H W"],
        deeper: Float[Tensor, "B M H1 W1"] | None = None,
        gather: Gather = alone,
    ) -> tuple[Float[Tensor, "B D H2 W2"], Float[Tensor, "B M H2 W2"]]:
        """The feature to compare with the teacher's, and the residual for the next shallower stage."""
        inner: Tensor = self.inner(feature, gather)
        if self.attention is not None:
            assert deeper is not None
            above = functional.interpolate(deeper, inner.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.attention(torch.cat([inner, above], dim=1)))
            inner = inner * weights[:, :1] + above * weights[:, 1:]
        inner = resized(inner, self.size)
        return self.outer(inner, gather), inner
