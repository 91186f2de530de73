"""VGG networks with batch norm for small pictures (Simonyan and Zisserman 2015), with one linear layer.

Names of weights are those of RepDistiller's and mdistiller's public checkpoints (`vgg13`).
"""

from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from crossdistill.models.blocks import Maps, PictureNetwork, Results, kaiming

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five blocks, by depth."""
WIDTHS = (64, 128, 256, 512, 512)


class VGG(PictureNetwork):
    """Pictures (B, channels, H, W) -> logits (B, classes), and the embedding (B, 512).

    2x2 max-pooling follows the first three blocks, and the fourth where the picture has 64 rows.

    Taps: block1 to block4, each block's output before its activation; `blockK_relu`, after it and before pooling;
    avgpool; flatten, the embedding. `block0_relu` is the first block's output.
    """

    def __init__(self, depth: int = 13, classes: int = 100, channels: int = 3) -> None:
        super().__init__()
        width_in = channels
        for number, (count, width) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                width_in = width
            # The last activation is a layer by itself, so that a tap can lie before it.
            self.add_module(f"block{number}", nn.Sequential(*layers[:-1]))
            self.add_module(f"block{number}_relu", layers[-1])
        self.pool = nn.ModuleList(nn.MaxPool2d(2) for _ in range(3))
        self.end_with(WIDTHS[-1], classes, "classifier")
        kaiming(self, linear=0.01)

    def forward(self, image: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding."""
        maps: Any = image
        for number in range(5):
            maps = getattr(self, f"block{number}_relu")(getattr(self, f"block{number}")(maps))
            if number < 3:
                maps = self.pool[number](maps)
            elif number == 3:
                maps = pooled_if_large(maps)
        return self.classified(maps)


def pooled_if_large(maps: Tensor) -> Tensor:
    """2x2 max-pooling of the fourth block's maps where they have 8 rows, as those of pictures of 64 rows do."""
    return functional.max_pool2d(maps, 2) if maps.shape[2] == 8 else maps


# A branch on a size cannot be traced: the traced graph calls the function as a whole.
fx.wrap("pooled_if_large")
