"""Multi-level logit distillation: class and row correlations of two batches of predictions.

Both forms compare rows with each other: they are scalars of a whole batch and need the rows of all ranks at once.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses.kl import log_probabilities

Reduction = Literal["mean", "published"]
"""Reduction of the squared differences: the mean over entries (MST-Distill's variant), or as Jin et al. publish it."""


def class_correlation(
    student: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    temperature: float,
    reduce: Reduction = "published",
    classes: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, ""]:
    """|P_tᵀ P_t - P_sᵀ P_s|² for P = softmax(logits / T), over C × C pairs of classes; a scalar of the batch, no unit.

    Jin, Wang and Lin, CVPR 2023, equation 8. "published" divides the sum of the entries by C, "mean" by C².

    Args:
        student: logits.
        teacher: logits; nothing is detached here.
        temperature: dimensionless, above 0.
        reduce: "published" or "mean".
        classes: factor of each class's column; None: 1.
    """
    return _difference(_gram(teacher, temperature, 0), _gram(student, temperature, 0), reduce, classes)


def row_correlation(
    student: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    temperature: float,
    reduce: Reduction = "published",
    rows: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """|P_t P_tᵀ - P_s P_sᵀ|² for P = softmax(logits / T), over B × B pairs of rows; a scalar of the batch, no unit.

    Jin, Wang and Lin, CVPR 2023, equation 6. "published" divides the sum of the entries by B, "mean" by B².
    `rows` is a factor of each row's column; the other arguments are those of `class_correlation`.
    """
    return _difference(_gram(teacher, temperature, 1), _gram(student, temperature, 1), reduce, rows)


def _gram(logits: Tensor, temperature: float, side: int) -> Tensor:
    probabilities = log_probabilities(logits, temperature).exp()
    return probabilities.T @ probabilities if side == 0 else probabilities @ probabilities.T


def _difference(first: Tensor, second: Tensor, reduce: Reduction, factors: Tensor | None) -> Tensor:
    squared = (first - second).square()
    if factors is not None:
        squared = squared * factors
    size = max(1, len(squared))
    return torch.sum(squared) / (size if reduce == "published" else size**2)
