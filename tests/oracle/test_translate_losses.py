"""Distances of translated features, each against a slow re-derivation in plain Python, and RADIO's equation by hand."""

import math

import pytest
import torch
from derivations import assert_equal, draw, gradient_by_differences

from crossdistill.losses import feature_distance
from crossdistill.losses.translate import Distance


def slow(student: list[float], teacher: list[float], kind: str, share: float) -> float:
    """The distance of two vectors."""
    pairs = list(zip(student, teacher, strict=True))
    norms = math.sqrt(sum(a * a for a in student)) * math.sqrt(sum(b * b for b in teacher))
    cosine = 1 - sum(a * b for a, b in pairs) / norms
    apart = [abs(a - b) for a, b in pairs]
    smooth = sum(0.5 * d * d if d < 1 else d - 0.5 for d in apart) / len(pairs)
    squared = sum(d * d for d in apart) / len(pairs)
    return {
        "cosine": cosine,
        "smooth-l1": smooth,
        "mse": squared,
        "cosine+smooth-l1": share * cosine + (1 - share) * smooth,
    }[kind]


@pytest.mark.parametrize("kind", ["cosine", "smooth-l1", "mse", "cosine+smooth-l1"])
@pytest.mark.parametrize("share", [0.9, 0.25])
def test_distances_are_means_over_positions(kind: Distance, share: float) -> None:
    student, teacher = draw(3, 4, 5), draw(3, 4, 5)
    wanted = [
        sum(slow(s, t, kind, share) for s, t in zip(mine, theirs, strict=True)) / 4
        for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    found = feature_distance(student, teacher, kind, share)
    assert_equal(found, wanted)
    found.sum().backward()
    numeric = gradient_by_differences(student, lambda x: feature_distance(x, teacher, kind, share).sum())
    torch.testing.assert_close(student.grad, numeric, rtol=1e-5, atol=1e-7)


def test_radios_equation_by_hand() -> None:
    # cos((3, 4), (4, 3)) = 24 / 25; apart (1, 1): smooth L1 is 0.5 for each.
    student, teacher = torch.tensor([[[3.0, 4.0]]]).double(), torch.tensor([[[4.0, 3.0]]]).double()
    assert_equal(feature_distance(student, teacher, "cosine+smooth-l1"), [0.9 * (1 - 24 / 25) + 0.1 * 0.5])
    # Apart (3, 0.5): smooth L1 is 2.5 and 0.125.
    teacher = torch.tensor([[[0.0, 3.5]]]).double()
    assert_equal(feature_distance(student, teacher, "cosine+smooth-l1"), [0.9 * (1 - 4 / 5) + 0.1 * (2.5 + 0.125) / 2])


@pytest.mark.parametrize("kind", ["cosine", "smooth-l1", "mse", "cosine+smooth-l1"])
def test_zero_features_and_no_rows_have_finite_gradients(kind: Distance) -> None:
    for student, teacher in (
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)),
        (torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)),
    ):
        student.requires_grad_()
        feature_distance(student, teacher, kind).sum().backward()
        assert bool(student.grad.isfinite().all())
