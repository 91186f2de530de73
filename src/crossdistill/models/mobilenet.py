"""MobileNets: version 2 at half width for small pictures, and version 1 for ImageNet.

Sandler et al. 2018 in RepDistiller's and mdistiller's form (`mobile_half`: ReLU instead of ReLU6, expansion by 6), and
Howard et al. 2017.
"""

from typing import Any

from torch import nn

from crossdistill.models.blocks import Maps, PictureNetwork, Results, convolution, kaiming

GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""Expansion, channels at half width, blocks, and the first block's stride."""
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of version 1's depthwise separable convolutions."""


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3 convolution, and projection without activation; its output holds negative values."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.conv = nn.Sequential(
            *convolution(width_in, hidden, 1),
            nn.ReLU(),
            *convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(),
            *convolution(hidden, width, 1),
        )
        self.residual = stride == 1 and width_in == width

    def forward(self, maps: Maps) -> Maps:
        """The projection, added to the input where the shapes are equal."""
        projected: Any = self.conv(maps)
        result: Maps = maps + projected if self.residual else projected
        return result


class MobileNetV2(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 1280).

    Taps: blocks.1, blocks.2, blocks.4, blocks.6, the linear outputs of groups of blocks, which no activation follows;
    avgpool; flatten, the embedding. `conv1` is the stem's output.
    """

    def __init__(self, classes: int = 100, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*convolution(channels, 16, 3, 2), nn.ReLU())
        width_in, groups = 16, []
        for expansion, width, count, stride in GROUPS:
            rest = [InvertedResidual(width, width, 1, expansion) for _ in range(count - 1)]
            groups.append(nn.Sequential(InvertedResidual(width_in, width, stride, expansion), *rest))
            width_in = width
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(*convolution(width_in, 1280, 1), nn.ReLU())
        self.end_with(1280, classes, "classifier")
        kaiming(self, linear=0.01)

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        return self.classified(self.conv2(self.blocks(self.conv1(image))))


class MobileNetV1(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 1024).

    Taps: model.3.4, model.5.4, model.11.4, model.13.4, the last maps of each size before their activation; `.5` in
    place of `.4`, after it; avgpool; flatten, the embedding.
    """

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        layers, width_in = [nn.Sequential(*convolution(channels, 32, 3, 2), nn.ReLU())], 32
        for width, stride in SEPARABLE:
            depthwise = [*convolution(width_in, width_in, 3, stride, groups=width_in), nn.ReLU()]
            layers.append(nn.Sequential(*depthwise, *convolution(width_in, width, 1), nn.ReLU()))
            width_in = width
        self.model = nn.Sequential(*layers)
        self.end_with(1024, classes, "fc")

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        return self.classified(self.model(image))
