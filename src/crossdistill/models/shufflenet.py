"""ShuffleNets for small pictures: version 1 with three groups (Zhang et al. 2018), version 2 (Ma et al. 2018).

In RepDistiller's and mdistiller's form: a 1x1 convolution as the stem, three stages, and in version 1 a further
activation after the depthwise convolution.
"""

from typing import Any

import torch
from torch import nn

from crossdistill.models.blocks import Maps, PictureNetwork, Results, convolution


class Shuffle(nn.Module):
    """Interleave the channels of several groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, maps: Maps) -> Maps:
        """Channel g · (channels / groups) + i becomes channel i · groups + g."""
        shuffled: Maps = maps.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return shuffled


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride 2 the pooled input is concatenated, else added.

    `sum` is the value before the last activation.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = width - width_in if stride == 2 else width
        middle, groups = out // 4, 1 if width_in == 24 else 3
        self.conv1, self.bn1 = convolution(width_in, middle, 1, groups=groups)
        self.relu1 = nn.ReLU()
        self.shuffle = Shuffle(groups)
        self.conv2, self.bn2 = convolution(middle, middle, 3, stride, groups=middle)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = convolution(middle, out, 1, groups=3)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.sum = nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, maps: Maps) -> Maps:
        """The activated sum or concatenation of both paths."""
        value = self.shuffle(self.relu1(self.bn1(self.conv1(maps))))
        value = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(value)))))
        joined = value + maps if self.pool is None else torch.cat([value, self.pool(maps)], 1)
        activated: Maps = self.relu3(self.sum(joined))
        return activated


class ShuffleNetV1(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 960).

    Taps: layer1, layer2, layer3, each stage's output; `layerK.LAST.sum`, the same before its activation; avgpool;
    flatten, the embedding. `relu1` is the stem's output.
    """

    def __init__(self, classes: int = 100, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, 24, 1)
        self.relu1 = nn.ReLU()
        width_in = 24
        for stage, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            rest = [UnitV1(width, width, 1) for _ in range(units - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(UnitV1(width_in, width, 2), *rest))
            width_in = width
        self.end_with(960, classes, "linear")

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        maps = self.relu1(self.bn1(self.conv1(image)))
        return self.classified(self.stages(maps))


class UnitV2(nn.Module):
    """1x1, depthwise 3x3, 1x1 on the second half of the channels; with stride 2 both paths read all of them.

    `joined` is both paths before the last activation and the shuffle. The first path has no negative values, so that
    the activation of both equals that of the second path alone, as published.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self._half = None if stride == 2 else half
        right = width_in if stride == 2 else half
        self.conv1, self.bn1 = convolution(right, half, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = convolution(half, half, 3, stride, groups=half)
        self.conv3, self.bn3 = convolution(half, half, 1)
        left = [*convolution(width_in, width_in, 3, 2, groups=width_in), *convolution(width_in, half, 1), nn.ReLU()]
        self.left = nn.Sequential(*left) if stride == 2 else None
        self.joined = nn.Identity()
        self.relu3 = nn.ReLU()
        self.shuffle = Shuffle(2)

    def forward(self, maps: Maps) -> Maps:
        """The shuffled channels of both paths."""
        both: Any = maps
        left = both[:, : self._half] if self.left is None else self.left(maps)
        right = both[:, self._half :] if self.left is None else maps
        value = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(right)))))
        joined = self.joined(torch.cat([left, self.bn3(self.conv3(value))], 1))
        shuffled: Maps = self.shuffle(self.relu3(joined))
        return shuffled


class ShuffleNetV2(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 1024).

    Taps: layer1, layer2, layer3, each stage's output; `layerK.LAST.joined`, the same before its activation and before
    its channels are shuffled; avgpool; flatten, the embedding. `relu1` is the stem's output.
    """

    def __init__(self, classes: int = 100, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, 24, 1)
        self.relu1 = nn.ReLU()
        width_in = 24
        for stage, (width, units) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
            rest = [UnitV2(width, width, 1) for _ in range(units)]
            self.add_module(f"layer{stage}", nn.Sequential(UnitV2(width_in, width, 2), *rest))
            width_in = width
        self.conv2, self.bn2 = convolution(464, 1024, 1)
        self.relu2 = nn.ReLU()
        self.end_with(1024, classes, "linear")

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        maps = self.stages(self.relu1(self.bn1(self.conv1(image))))
        return self.classified(self.relu2(self.bn2(self.conv2(maps))))
