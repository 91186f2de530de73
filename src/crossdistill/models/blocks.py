"""Parts that the picture networks share: the classifier after global pooling, the first weights, residual blocks.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, fx, nn

Maps = Float[Tensor, "B _ _ _"] | fx.Proxy
"""Maps (B, C, H, W); a layer may change all sizes but the batch."""
Results = dict[str, Float[Tensor, "B _"] | fx.Proxy]


class PictureNetwork(nn.Module):
    """The end of a picture network: global average pooling, the embedding, and a linear classifier.

    Taps of every network: avgpool (B, D, 1, 1) and flatten, the embedding (B, D). `head` is the attribute's name of the
    classifier, as in public checkpoints; with 0 classes there is none, and the embedding is the only result.
    """

    def end_with(self, width: int, classes: int, head: str) -> None:
        """Add the end to a network that has its other layers: the order of weights is that of execution."""
        self.embedding_width = width
        self._head = head
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.add_module(head, nn.Linear(width, classes) if classes else None)

    def stages(self, maps: Maps) -> Maps:
        """The layers layer1, layer2, ... one after another."""
        stages = [layer for name, layer in self.named_children() if name.startswith("layer")]
        for layer in stages:
            maps = layer(maps)
        return maps

    def classified(self, maps: Maps) -> Results:
        """Class logits (none with 0 classes) and the embedding of the last maps."""
        embedding = self.flatten(self.avgpool(maps))
        head = getattr(self, self._head)
        return {"embedding": embedding} if head is None else {"logits": head(embedding), "embedding": embedding}


def kaiming(module: nn.Module, *, linear: float | None = None) -> None:
    """Draw convolutions from N(0, 2 / (k · k · output channels)) (He et al. 2015); their biases become zero.

    `linear` is the standard deviation of the classifier's weights; 0 keeps PyTorch's. Both set its bias to zero; None
    keeps PyTorch's classifier.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear) and linear is not None:
            if linear:
                nn.init.normal_(part.weight, std=linear)
            nn.init.zeros_(part.bias)


def convolution(width_in: int, width: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size up to its stride, and its batch norm."""
    return [
        nn.Conv2d(width_in, width, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]


class ResidualBlock(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1 to four times the width) block, activated after its sum.

    `sum` is the value before the last activation. `shortcut` is the attribute's name of the projection, which exists
    where the shape changes. The stride is that of the first 3x3 convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int, *, bottleneck: bool, shortcut: str) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        sizes = [(width_in, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self._steps = 3 if bottleneck else 2
        for number, step in enumerate(sizes if bottleneck else [(width_in, width, 3, stride), (width, width, 3, 1)], 1):
            for name, layer in zip(("conv", "bn"), convolution(*step), strict=True):
                self.add_module(f"{name}{number}", layer)
            self.add_module(f"relu{number}", nn.ReLU())
        self._path = shortcut if stride != 1 or width_in != out else None
        if self._path:
            self.add_module(self._path, nn.Sequential(*convolution(width_in, out, 1, stride)))
        self.sum = nn.Identity()

    def forward(self, maps: Maps) -> Maps:
        """The activated sum of both paths."""
        value: Any = maps
        for number in range(1, self._steps + 1):
            value = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(value))
            if number < self._steps:
                value = getattr(self, f"relu{number}")(value)
        added: Any = getattr(self, self._path)(maps) if self._path else maps
        activated: Maps = getattr(self, f"relu{self._steps}")(self.sum(value + added))
        return activated
