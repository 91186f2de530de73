"""A small convolutional network over tokens (Kim 2014), for a text student.

Annotations name `fx.Proxy` beside the tensor, because a network is traced when it is split at a tap.
"""

from jaxtyping import Float, Int64
from torch import Tensor, fx, nn


class TextCNN(nn.Module):
    """Token ids (B, T), 0 for padding, and a mask (B, T) -> logits (B, classes), and the embedding (B, width).

    `vocabulary` is the number of token ids; 257 are the bytes of UTF-8 plus padding. Two convolutions of 5 tokens;
    their output is averaged over the tokens of the mask.

    Taps: conv1, conv2 (width, T), before their ReLU, and each with `_relu` after it; pool (width,), the mean; fc1
    (width,), before its ReLU; fc1_relu, the embedding.
    """

    def __init__(self, vocabulary: int = 257, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.conv1 = nn.Conv1d(width, width, 5, padding=2)
        self.conv1_relu = nn.ReLU()
        self.conv2 = nn.Conv1d(width, width, 5, padding=2)
        self.conv2_relu = nn.ReLU()
        self.pool = nn.Identity()
        self.fc1 = nn.Linear(width, width)
        self.fc1_relu = nn.ReLU()
        self.embedding_width = width
        self.fc = nn.Linear(width, classes) if classes else None

    def forward(
        self, input_ids: Int64[Tensor, "B T"] | fx.Proxy, attention_mask: Int64[Tensor, "B T"] | fx.Proxy
    ) -> dict[str, Float[Tensor, "B D"] | fx.Proxy]:
        """Class logits (none with 0 classes) and the embedding."""
        mask = attention_mask.unsqueeze(1).to(self.conv1.weight.dtype)
        maps = self.tokens(input_ids).transpose(1, 2) * mask
        # Masked between the convolutions too, so that padding changes no valid step.
        maps = self.conv1_relu(self.conv1(maps)) * mask
        maps = self.conv2_relu(self.conv2(maps)) * mask
        embedding = self.fc1_relu(self.fc1(self.pool(maps.sum(2) / mask.sum(2).clamp(min=1))))
        return {"embedding": embedding} if self.fc is None else {"logits": self.fc(embedding), "embedding": embedding}
