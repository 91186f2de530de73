"""LeNet5 as MST-Distill uses it for AV-MNIST images: ReLU, average pooling, a third convolution down to a vector.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional


class LeNet5(nn.Module):
    """Images (B, 1, 28, 28) -> logits (B, classes); 61,706 parameters with 10 classes.

    Taps: conv1 (6, 28, 28), conv2 (16, 10, 10), conv3 (120, 1, 1), fc1 (84,), all before their ReLU, and each with
    `_relu` after it; flatten_identity (120,), of conv3_relu.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv2_relu = nn.ReLU()
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.conv3_relu = nn.ReLU()
        self.flatten_identity = nn.Identity()
        self.fc1 = nn.Linear(120, 84)
        self.fc1_relu = nn.ReLU()
        self.fc2 = nn.Linear(84, classes)

    def forward(self, image: Float[Tensor, "B 1 28 28"] | fx.Proxy) -> Float[Tensor, "B classes"] | fx.Proxy:
        """Class logits."""
        maps = functional.avg_pool2d(self.conv1_relu(self.conv1(image)), 2)
        maps = functional.avg_pool2d(self.conv2_relu(self.conv2(maps)), 2)
        vector = self.flatten_identity(self.conv3_relu(self.conv3(maps)).flatten(1))
        logits: Tensor = self.fc2(self.fc1_relu(self.fc1(vector)))
        return logits
