"""Residual networks of four stages (He et al. 2016): ResNet18, 34 and 50, with the stem for ImageNet or for CIFAR.

Names of weights are those of public checkpoints: torchvision's for ImageNet, RepDistiller's and mdistiller's for CIFAR.
"""

from typing import Literal

from torch import nn

from crossdistill.models.blocks import Maps, PictureNetwork, ResidualBlock, Results, kaiming

DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}
"""By depth: blocks of each stage, and whether they are bottlenecks."""


class ResNet(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 512), at depth 50 (B, 2048).

    The ImageNet stem reduces the sides to a quarter (7x7 convolution with stride 2, 3x3 max-pooling with stride 2); the
    CIFAR stem, a 3x3 convolution, keeps them. The stages have strides 1, 2, 2, 2.

    Taps: layer1 to layer4, each stage's output; `layerK.LAST.sum`, the same before its activation; avgpool; flatten,
    the embedding. `relu` is the stem's output, before max-pooling.
    """

    def __init__(
        self, depth: int = 18, stem: Literal["imagenet", "cifar"] = "imagenet", classes: int = 1000, channels: int = 3
    ) -> None:
        blocks, bottleneck = DEPTHS[depth]
        large, grown = stem == "imagenet", 4 if bottleneck else 1
        super().__init__()
        self.conv1 = nn.Conv2d(
            channels, 64, 7 if large else 3, stride=2 if large else 1, padding=3 if large else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        width_in = 64
        for stage, count in enumerate(blocks):
            width, strides = 64 * 2**stage, (1 if stage == 0 else 2, *[1] * (count - 1))
            layers = []
            for stride in strides:
                layers.append(
                    ResidualBlock(
                        width_in,
                        width,
                        stride,
                        bottleneck=bottleneck,
                        shortcut="downsample" if large else "shortcut",
                    )
                )
                width_in = width * grown
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.end_with(512 * grown, classes, "fc" if large else "linear")
        kaiming(self)

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return self.classified(self.stages(maps))
