"""Wide residual networks for small pictures (Zagoruyko and Komodakis 2016), which activate before each convolution.

Names of weights are those of RepDistiller's and mdistiller's public checkpoints (`wrn_40_2`).
"""

from torch import nn

from crossdistill.models.blocks import Maps, PictureNetwork, Results, kaiming


class WideBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice; where the width changes, the projection reads the first activation."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = None
        if width_in != width:
            self.convShortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, maps: Maps) -> Maps:
        """The sum of both paths, not activated."""
        first = self.relu1(self.bn1(maps))
        added = maps if self.convShortcut is None else self.convShortcut(first)
        total: Maps = added + self.conv2(self.relu2(self.bn2(self.conv1(first))))
        return total


class WideStage(nn.Module):
    """The blocks of one stage, the first with the stride."""

    def __init__(self, width_in: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(width, width, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(width_in, width, stride), *rest)

    def forward(self, maps: Maps) -> Maps:
        """The last block's sum."""
        total: Maps = self.layer(maps)
        return total


class WideResNet(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 64 · factor). `depth` is 6n + 4.

    Taps: block1, block2, block3, each stage's sum, which holds negative values and is what published methods compare;
    `block2.layer.0.bn1`, `block3.layer.0.bn1`, `bn1`, the same after the next batch norm and before its activation, for
    methods that compare features there; avgpool; flatten, the embedding. `conv1` is the stem's output.
    """

    def __init__(self, depth: int = 40, factor: int = 2, classes: int = 100, channels: int = 3) -> None:
        blocks, left = divmod(depth - 4, 6)
        if left or blocks < 1:
            raise ValueError(f"wanted a depth of 6n + 4 (10, 16, ..., 40), found {depth}")
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, 16 * factor, blocks, 1)
        self.block2 = WideStage(16 * factor, 32 * factor, blocks, 2)
        self.block3 = WideStage(32 * factor, 64 * factor, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.relu = nn.ReLU()
        self.end_with(64 * factor, classes, "fc")
        kaiming(self, linear=0.0)

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        maps = self.block3(self.block2(self.block1(self.conv1(image))))
        return self.classified(self.relu(self.bn1(maps)))
