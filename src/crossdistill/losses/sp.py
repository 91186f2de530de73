"""Similarity-preserving distillation: difference of the rows' pairwise similarities (Tung and Mori, 2019)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def similarity_preserving(student: Float[Tensor, "B *mine"], teacher: Float[Tensor, "B *theirs"]) -> Float[Tensor, ""]:
    """Squared difference of row-wise L2-normalised Gram matrices, summed and divided by B²; a scalar, no unit.

    arXiv 1907.09682, equation 4. Features of any shape are flattened. Rows of all ranks are needed at once. Nothing is
    detached here; detach the teacher's features.
    """
    return (_similarities(student) - _similarities(teacher)).square().sum() / max(1, len(student)) ** 2


def _similarities(feature: Tensor) -> Tensor:
    rows = feature.flatten(1)
    return functional.normalize(rows @ rows.T, dim=1)
