"""Logits of pictures' embeddings from texts that describe the classes, with three ways to average over templates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

TOKENS = 2**15
"""Tokens in one pass of a text encoder, of which the feed-forward layers hold thousands of numbers each."""

Ensemble = Literal["embedding", "logit", "probability"]


@dataclass(frozen=True)
class TextSide:
    """The text encoder of a network of pictures and texts, and how it turns cosines into logits."""

    encode: Callable[[Sequence[str]], Tensor]
    """Embeddings (N, D), float32, of N texts."""
    scale: float
    """Factor of the cosines: the exponential of the model's `logit_scale`."""
    bias: float
    sigmoid: bool
    """Whether it was trained with a sigmoid of each logit (SigLIP), instead of a softmax over them."""

    @classmethod
    def of(cls, model: Any, encode: Callable[[Sequence[str]], Tensor]) -> "TextSide":
        """That of a model with a `logit_scale`, and a `logit_bias` where it was trained with a sigmoid."""
        bias = getattr(model, "logit_bias", None)
        scale = float(model.logit_scale.detach().exp())
        return cls(encode, scale, 0.0 if bias is None else float(bias.detach()), bias is not None)


@dataclass(frozen=True)
class ClassTexts:
    """Weights of a layer that computes logits from pictures' embeddings of length 1."""

    weight: Tensor
    """(C, D), times the scale; of an average of probabilities (T * C, D), template by template."""
    bias: float | None
    """None: there is none, as in models that were trained with a softmax."""
    templates: int = 1
    """Number of templates whose probabilities are averaged."""
    sigmoid: bool = False
    examples: tuple[str, ...] = ()
    """Some of the texts, for messages."""
    said: str = ""


def in_passes(encode: Callable[[slice], Tensor], rows: int, width: int) -> Tensor:
    """The encodings of rows of `width` tokens, in passes of at most `TOKENS` tokens; one row at least."""
    most = max(1, TOKENS // max(1, width))
    return torch.cat([encode(slice(start, start + most)) for start in range(0, rows, most)])


@torch.no_grad()
def class_weights(embeddings: Tensor, ensemble: Ensemble) -> Tensor:
    """Embeddings (T, C, D) of T templates as weights: (C, D), or (T * C, D) for an average of probabilities.

    "embedding" averages texts of length 1 and normalises the mean; "logit" leaves the mean as it is, so that its
    logits are the mean of the templates' logits.
    """
    unit = nn.functional.normalize(embeddings.float(), dim=2)
    if ensemble == "probability":
        return unit.flatten(0, 1)
    mean = unit.mean(0)
    return nn.functional.normalize(mean, dim=1) if ensemble == "embedding" else mean


class TextHead(nn.Linear):
    """Logits (B, C) from pictures' embeddings (B, D) of length 1, in float32 also after a body of lower precision.

    With several templates, softmax (or, with `sigmoid`, sigmoid) of its logits is the mean of the templates'
    probabilities.
    """

    def __init__(self, texts: ClassTexts) -> None:
        super().__init__(texts.weight.shape[1], texts.weight.shape[0], bias=texts.bias is not None)
        self.templates, self.sigmoid = texts.templates, texts.sigmoid
        self.weight = nn.Parameter(texts.weight.clone())
        if texts.bias is not None:
            nn.init.constant_(self.bias, texts.bias)

    def forward(self, input: Tensor) -> Tensor:
        """The logits of embeddings."""
        values: Tensor = super().forward(input.float())
        if self.templates == 1:
            return values
        values = values.unflatten(1, (self.templates, -1))
        if self.sigmoid:
            on, off = nn.functional.logsigmoid(values), nn.functional.logsigmoid(-values)
            odds: Tensor = on.logsumexp(1) - off.logsumexp(1)
            return odds
        mean: Tensor = values.log_softmax(2).logsumexp(1) - math.log(self.templates)
        return mean

    def keep_float32(self, texts: ClassTexts) -> None:
        """Hold the weights as buffers in float32: a network's type is that of its parameters."""
        del self.weight
        self.register_buffer("weight", texts.weight.clone())
        if texts.bias is not None:
            del self.bias
            self.register_buffer("bias", torch.full(texts.weight.shape[:1], texts.bias))

    def extra_repr(self) -> str:
        """The settings that weights do not show."""
        return f"{super().extra_repr()}, templates={self.templates}, sigmoid={self.sigmoid}"
