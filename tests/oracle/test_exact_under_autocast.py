"""Computations that subtract nearly equal numbers, or count frames, have the digits of float32 under autocast."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossdistill.losses.hidden_states import at_frame_rate, barlow_distance, hidden_state_distance, pooled_frames
from crossdistill.losses.rkd import rkd_distance
from crossdistill.nets.domain_classifier import STATISTICS, DomainClassifier, DomainSums
from crossdistill.nets.own_domain import OwnDomain
from crossdistill.nets.standardisation import Moments, Standardisation


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that bfloat16 represents exactly, so that only the computation may lose digits."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def classified(values: Tensor) -> Tensor:
    """Two domains whose statistics are large and differ a little."""
    classifier = DomainClassifier(("a", "b"))
    sums = DomainSums(classifier)
    base = 12 + 0.05 * numbers(60, STATISTICS, seed=1).float()
    sums.add(base + torch.arange(60).remainder(2)[:, None] * 0.02, ["a", "b"] * 30)
    classifier.settle(sums)
    # Rows at which the two are about equally likely.
    found: Tensor = classifier(12.01 + 0.01 * values.float())
    assert found.min() < 0.4
    assert found.max() > 0.6
    return found


def own_domain(values: Tensor) -> Tensor:
    own = OwnDomain(values.shape[1])
    for sums, shift in zip(moments := own.moments(), (0.0, 0.5), strict=True):
        sums.add(numbers(40, 3, values.shape[1], seed=2) + shift)
    own.settle(moments)
    found: Tensor = own(values)
    return found


def turned(values: Tensor) -> Tensor:
    norm = Standardisation("phi-s", values.shape[-1])
    sums = Moments(norm)
    sums.add(numbers(40, 4, values.shape[-1], seed=3))
    norm.settle(sums)
    found: Tensor = norm(values)
    return found


def near(values: Tensor) -> Tensor:
    """Distances of rows of which half are near each other."""
    rows = values.float()
    rows = torch.where(torch.arange(len(rows))[:, None] % 2 == 0, rows[:1] + 2**-6 * rows, rows)
    return rkd_distance(rows, numbers(*values.shape, seed=4).float())


CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "classifier": (classified, (8, STATISTICS)),
    "own domain": (own_domain, (8, 16)),
    "phi-s": (turned, (3, 5, 16)),
    "pooled": (lambda values: pooled_frames(values, None, 4), (2, 2, 37, 8)),
    "barlow": (lambda values: barlow_distance(values, values + numbers(*values.shape, seed=5)), (9, 2, 3, 8)),
    "l1": (lambda values: hidden_state_distance(values, values * 1.5), (2, 2, 7, 32)),
    "cosine": (lambda values: hidden_state_distance(values, values + 2**-5, None, "cosine"), (2, 2, 7, 32)),
    "bernoulli": (lambda values: hidden_state_distance(values, values.sigmoid(), None, "bernoulli"), (2, 2, 7, 32)),
    "distances": (near, (12, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name: str) -> None:
    compute, shape = CASES[name]
    values = numbers(*shape)
    plain = compute(values)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute(values)
    assert found.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    if name not in ("bernoulli", "l1", "cosine", "barlow"):
        # In those, the second argument is rounded too.
        torch.testing.assert_close(plain, compute(values.float()), rtol=1e-5, atol=1e-6)


def test_places_of_frames_are_counted_in_float32() -> None:
    count, total = 1171, 780
    # Numbers of frames in two channels, which bfloat16 represents.
    frame = torch.stack([torch.arange(count) // 128, torch.arange(count) % 128], 1)
    values = frame[None, None].float()
    for frames in (None, torch.tensor([1001])):
        wanted = at_frame_rate(values, frames, 1.5, total)
        found = at_frame_rate(values.bfloat16(), frames, 1.5, total)
        assert found.dtype == torch.bfloat16
        # Half a frame between 127 and 0 of the next hundred and twenty-eight is rounded; a wrong frame is farther off.
        torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=0.25)
    place = wanted[0, 0, :, 0] * 128 + wanted[0, 0, :, 1]
    assert place[-1] == 1000
