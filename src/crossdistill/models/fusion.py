"""A multimodal network from any encoders: their embeddings are concatenated and classified (late fusion)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossdistill.models import find_model
from crossdistill.models.text_cnn import TextCNN


class Fusion(nn.Module):
    """One encoder for each modality, in the order of the inputs -> logits (B, classes), and the embedding (B, width).

    `encoders` maps each modality to {"model": a name of the table, "options": its arguments}; the encoder is that model
    without its last layer. Tokens and their mask, which a batch holds as a mapping, reach the `text-cnn` by keyword.

    Taps: encoders.MODALITY; concat (sum of the widths,); fc1 (width,), before its ReLU; fc1_relu, the embedding.

    Raises:
        ValueError: a model has no `embedding_width`, or two modalities are tokens.
    """

    def __init__(self, encoders: Mapping[str, Mapping[str, Any]], width: int = 128, classes: int = 10) -> None:
        super().__init__()
        modules = {
            name: find_model(encoder["model"]).module(**{**encoder.get("options", {}), "classes": 0})
            for name, encoder in encoders.items()
        }
        widths = {name: getattr(module, "embedding_width", None) for name, module in modules.items()}
        without = [name for name, value in widths.items() if value is None]
        if without:
            raise ValueError(f"encoders: {', '.join(without)}: a model without an embedding cannot be fused")
        if sum(isinstance(module, TextCNN) for module in modules.values()) > 1:
            raise ValueError("encoders: two modalities are tokens; at most one can be")
        self.encoders = nn.ModuleDict(modules)
        self.concat = nn.Identity()
        self.fc1 = nn.Linear(sum(filter(None, widths.values())), width)
        self.fc1_relu = nn.ReLU()
        self.embedding_width = width
        self.fc = nn.Linear(width, classes) if classes else None

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Float[Tensor, "B D"]]:
        """Class logits (none with 0 classes) and the embedding."""
        left = list(inputs)
        parts = [
            encoder(**named) if isinstance(encoder, TextCNN) else encoder(left.pop(0))
            for encoder in self.encoders.values()
        ]
        embedding = self.fc1_relu(self.fc1(self.concat(torch.cat([part["embedding"] for part in parts], 1))))
        return {"embedding": embedding} if self.fc is None else {"logits": self.fc(embedding), "embedding": embedding}
