"""The three-layer audio CNN of MST-Distill's AV-MNIST experiments (ThreeLayerCNNA-A).

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional


class ThreeLayerCNNA(nn.Module):
    """Spectrograms (B, 1, 112, 112) -> logits (B, classes); 343,562 parameters with 10 classes.

    Taps: conv1 (32, 112, 112), conv2 (64, 56, 56), conv3 (128, 28, 28), all before their ReLU, and each with `_relu`
    after it; conv3_maxpool (128, 14, 14) and conv3_maxpool_flatten (25088,), the penultimate layer. fc1 returns
    the logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv2_relu = nn.ReLU()
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3_relu = nn.ReLU()
        self.conv3_maxpool = nn.Identity()
        self.conv3_maxpool_flatten = nn.Identity()
        self.fc1 = nn.Linear(128 * 14 * 14, classes)

    def forward(self, audio: Float[Tensor, "B 1 112 112"] | fx.Proxy) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        maps = functional.max_pool2d(self.conv1_relu(self.conv1(audio)), 2)
        maps = functional.max_pool2d(self.conv2_relu(self.conv2(maps)), 2)
        maps = self.conv3_maxpool(functional.max_pool2d(self.conv3_relu(self.conv3(maps)), 2))
        logits: Tensor = self.fc1(self.conv3_maxpool_flatten(maps.flatten(1)))
        return logits
