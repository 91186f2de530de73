"""Orthogonal matrices that spread variance evenly over all channels: Hadamard's, and rotations where there is none."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def even_rotation(variances: Float[Tensor, " D"]) -> Float[Tensor, "D D"]:
    """An orthogonal H whose H · diag(variances) · Hᵀ has equal entries on its diagonal, in float64.

    A Hadamard matrix divided by √D, where Sylvester's or Paley's construction has one of this size (powers of two, and
    most multiples of four); elsewhere D - 1 plane rotations, each of which makes one entry equal to the mean (Bendel
    and Mickey, 1978), so that the result is as even but depends on the variances.
    """
    size = len(variances)
    matrix = hadamard(size)
    return _even_by_rotations(variances) if matrix is None else matrix.double() / size**0.5


def hadamard(size: int) -> Int64[Tensor, "D D"] | None:
    """A matrix of ±1 with orthogonal rows, by Sylvester's and Paley's constructions; None if they have none."""
    if size in (1, 2):
        return torch.tensor([[1, 1], [1, -1]])[:size, :size]
    if size % 4:
        return None
    if _is_prime(size - 1):
        # Paley's first construction: size - 1 is 3 modulo 4.
        return _bordered(size - 1, -1) + torch.eye(size, dtype=torch.int64)
    half = size // 2
    if _is_prime(half - 1) and (half - 1) % 4 == 1:
        core = torch.kron(_bordered(half - 1, 1), torch.tensor([[1, 1], [1, -1]]))
        return core + torch.kron(torch.eye(half, dtype=torch.int64), torch.tensor([[1, -1], [-1, -1]]))
    smaller = hadamard(half)
    return None if smaller is None else torch.kron(torch.tensor([[1, 1], [1, -1]]), smaller)


def _bordered(prime: int, sign: int) -> Tensor:
    """Paley's matrix of quadratic residues with a border of ones: symmetric (`sign` 1) or skew (-1)."""
    residues = {number * number % prime for number in range(1, prime)}
    symbol = torch.tensor([0, *(1 if number in residues else -1 for number in range(1, prime))])
    positions = torch.arange(prime)
    core = torch.zeros(prime + 1, prime + 1, dtype=torch.int64)
    core[0, 1:], core[1:, 0] = 1, sign
    core[1:, 1:] = symbol[(positions[:, None] - positions[None]) % prime]
    return core


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _even_by_rotations(variances: Tensor) -> Tensor:
    matrix = torch.diag(variances.double())
    rotation = torch.eye(len(variances), dtype=torch.float64)
    mean = float(variances.double().mean())
    left = list(range(len(variances)))
    while len(left) > 1:
        diagonal = matrix.diagonal()[left]
        i, j = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        low, high, cross = float(matrix[i, i]) - mean, float(matrix[j, j]) - mean, float(matrix[i, j])
        if high <= 0 or low >= 0:
            break  # equal, up to rounding
        # The tangent t of the angle solves high · t² - 2 · cross · t + low = 0, which makes entry i the mean.
        tangent = (cross + (cross * cross - low * high) ** 0.5) / high
        cosine = 1 / (1 + tangent * tangent) ** 0.5
        turn = torch.tensor([[1, -tangent], [tangent, 1]], dtype=torch.float64) * cosine
        matrix[[i, j]] = turn @ matrix[[i, j]]
        matrix[:, [i, j]] = matrix[:, [i, j]] @ turn.T
        rotation[[i, j]] = turn @ rotation[[i, j]]
        left.remove(i)
    return rotation
