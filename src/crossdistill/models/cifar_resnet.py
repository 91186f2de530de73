"""Residual networks for small pictures (He et al. 2016, section 4.2), also for larger ones and for spectrograms.

Names of weights and numbers of parameters are those of the public CIFAR checkpoints of RepDistiller and mdistiller.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from jaxtyping import Float
from torch import Tensor, fx, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `sum` is the value before the last activation."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )
        self.sum = nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, maps: Float[Tensor, "B C H W"] | fx.Proxy) -> Float[Tensor, "B D h w"] | fx.Proxy:
        """The activated sum of both paths."""
        straight = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        activated: Tensor = self.relu2(self.sum(straight + self.downsample(maps)))
        return activated


class CifarResNet(nn.Module):
    """Pictures (B, channels, H, W) of any size -> logits (B, classes), and the embedding (B, last of `widths`).

    `depth` is 6n + 2. `stride` is that of the first convolution: 1 for pictures up to 64 pixels, as published; larger
    for larger pictures, for the same cost. With 100 classes, 3 channels and the default widths: 83,892 parameters at
    depth 8, 278,324 at 20, 472,756 at 32, 861,620 at 56.

    Taps: layer1, layer2, layer3, each stage's output; `layerK.LAST.sum`, the same before its activation; flatten, the
    embedding.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        classes: int = 100,
        channels: int = 3,
        stride: int = 1,
    ) -> None:
        super().__init__()
        blocks, left = divmod(depth - 2, 6)
        if left or blocks < 1:
            raise ValueError(f"wanted a depth of 6n + 2 (8, 14, 20, ...), found {depth}")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks, 1)
        self.layer2 = _stage(widths[1], widths[2], blocks, 2)
        self.layer3 = _stage(widths[2], widths[3], blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.embedding_width = widths[3]
        self.fc = nn.Linear(widths[3], classes) if classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Float[Tensor, "B C H W"] | fx.Proxy) -> dict[str, Float[Tensor, "B D"] | fx.Proxy]:
        """Class logits (none with 0 classes) and the embedding."""
        maps = self.relu(self.bn1(self.conv1(image)))
        embedding = self.flatten(self.avgpool(self.layer3(self.layer2(self.layer1(maps)))))
        return {"embedding": embedding} if self.fc is None else {"logits": self.fc(embedding), "embedding": embedding}


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(width_in, width, stride), *rest)
