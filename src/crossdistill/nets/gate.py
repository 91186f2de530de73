"""Gates: scores of the teachers for each row, from the student's logits (MST-Distill, stage 3)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class GateNet(nn.Module):
    """Logits over K teachers for each row of class logits: Linear(C, 2C), ReLU, Linear(2C, K).

    `activation=False` is the released code's gate, an affine map without ReLU; in the paper it is an MLP.
    """

    def __init__(self, classes: int, teachers: int, activation: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(classes, 2 * classes)
        self.fc2 = nn.Linear(2 * classes, teachers)

    def forward(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Gate logits, before the softmax."""
        hidden = self.fc1(logits)
        gate: Tensor = self.fc2(functional.relu(hidden) if self.activation else hidden)
        return gate


class GateNetDense(nn.Module):
    """Logits over K teachers for each image of dense class logits (B, C, H, W): one decision for all its pixels.

    Pointwise convolution to 2C, ReLU, depthwise 3x3 of stride 2, ReLU, mean over space, Linear(2C, K).
    """

    def __init__(self, classes: int, teachers: int) -> None:
        super().__init__()
        hidden = 2 * classes
        self.conv_point = nn.Conv2d(classes, hidden, 1)
        self.conv_depthwise = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden)
        self.fc = nn.Linear(hidden, teachers)

    def forward(self, logits: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Gate logits, before the softmax."""
        hidden = functional.relu(self.conv_depthwise(functional.relu(self.conv_point(logits))))
        gate: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return gate
