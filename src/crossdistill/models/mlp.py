"""A multilayer perceptron for columns of numbers.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from jaxtyping import Float
from torch import Tensor, fx, nn


class MLP(nn.Module):
    """Vectors (B, features) -> logits (B, classes), and the embedding (B, width).

    Taps: fc1, fc2 (width,), before their ReLU, and each with `_relu` after it; fc2_relu is the embedding.
    """

    def __init__(self, features: int, width: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, width)
        self.fc1_relu = nn.ReLU()
        self.fc2 = nn.Linear(width, width)
        self.fc2_relu = nn.ReLU()
        self.embedding_width = width
        self.fc = nn.Linear(width, classes) if classes else None

    def forward(self, numbers: Float[Tensor, "B F"] | fx.Proxy) -> dict[str, Float[Tensor, "B D"] | fx.Proxy]:
        """Class logits (none with 0 classes) and the embedding."""
        embedding = self.fc2_relu(self.fc2(self.fc1_relu(self.fc1(numbers))))
        return {"embedding": embedding} if self.fc is None else {"logits": self.fc(embedding), "embedding": embedding}
