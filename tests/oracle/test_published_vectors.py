"""Closed-form inputs and the values that the mdistiller family's losses give on them, to eight digits in float64.

g(shape, s, amp) lays amp · sin(s + 0.37 k + 0.001 k²), k = 0, 1, ..., out row by row.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crossdistill import losses
from crossdistill.losses.vid import log_scale_of
from crossdistill.nets.memory import Memory


def g(shape: tuple[int, ...], start: float, amplitude: float = 1.0) -> Tensor:
    k = torch.arange(prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(start + 0.37 * k + 0.001 * k * k)).view(shape)


def unit(shape: tuple[int, ...], start: float) -> Tensor:
    return functional.normalize(g(shape, start), dim=1)


STUDENT, TEACHER = g((4, 10), 0.1, 3), g((4, 10), 1.1, 5)
COSINES = 0.2 + 0.05 * g((4, 10), 2.1)
TARGETS = torch.tensor([3, 0, 7, 9])
MINE = [g((4, 3, 8, 8), 0.2), g((4, 5, 4, 4), 0.4), g((4, 7, 2, 2), 0.6)]
THEIRS = [g((4, 3, 8, 8), 1.2), g((4, 6, 4, 4), 1.4), g((4, 9, 2, 2), 1.6)]
POOLED = g((4, 12), 0.5), g((4, 20), 1.5)
DKD = STUDENT, TEACHER, TARGETS, 4.0


def _fused(scale: float) -> Tensor:
    return losses.distillation_kl(STUDENT, 0.7 * TEACHER + 0.3 * scale * COSINES, 3.0).mean()


def _over(loss: Callable[[Tensor, Tensor], Tensor], mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return torch.stack([loss(*pair).mean() for pair in zip(mine, theirs, strict=True)]).sum()


def _richkd() -> Tensor:
    return losses.cross_entropy(STUDENT, TARGETS).mean() + 3 * _fused(1.0)


def _dkd() -> Tensor:
    return (losses.target_class_kl(*DKD) + 8 * losses.other_classes_kl(*DKD)).mean()


def _lskd() -> Tensor:
    return losses.distillation_kl(losses.standardised(STUDENT), losses.standardised(TEACHER), 2.0).mean()


def _hcl() -> Tensor:
    shapes = [(4, 3, 8, 8), (4, 5, 4, 4), (4, 6, 1, 1)]
    starts = (0.2, 0.4, 0.6)
    mine = [g(shape, start) for shape, start in zip(shapes, starts, strict=True)]
    theirs = [g(shape, start + 1) for shape, start in zip(shapes, starts, strict=True)]
    return _over(losses.hierarchical_context, mine, theirs)


def _ofd() -> Tensor:
    margin = torch.full((3,), -0.5, dtype=torch.float64)
    return losses.partial_distance(g((4, 3, 4, 4), 0.2), g((4, 3, 4, 4), 1.2), margin).mean()


def _vid() -> Tensor:
    scales = torch.full((5,), log_scale_of(5.0), dtype=torch.float64)
    return losses.gaussian_nll(g((4, 5, 4, 4), 0.4), g((4, 5, 4, 4), 1.4), scales).mean()


VECTORS: dict[str, tuple[Callable[[], Tensor], float]] = {
    "cross-entropy": (lambda: losses.cross_entropy(STUDENT, TARGETS).mean(), 4.7618827582),
    "kd, T = 4": (lambda: losses.distillation_kl(STUDENT, TEACHER, 4.0).mean(), 2.7769600344),
    "kd, T = 2": (lambda: losses.distillation_kl(STUDENT, TEACHER, 2.0).mean(), 1.8096110766),
    "kd, standardised": (_lskd, 0.3780872851),
    "fused logits": (partial(_fused, 1.0), 1.6722710277),
    "fused logits, scaled": (partial(_fused, 100.0), 3.5848493677),
    "teacher alone": (partial(_fused, 0.0), 1.6561914043),
    "fused with its task": (_richkd, 9.7786958413),
    "tckd": (lambda: losses.target_class_kl(*DKD).mean(), 0.1941025107),
    "nckd": (lambda: losses.other_classes_kl(*DKD).mean(), 2.8035983540),
    "dkd": (_dkd, 22.6228893428),
    "class correlation": (lambda: losses.class_correlation(STUDENT, TEACHER, 4.0), 0.0024683619),
    "row correlation": (lambda: losses.row_correlation(STUDENT, TEACHER, 4.0), 0.0024368721),
    "at": (partial(_over, losses.attention_transfer, MINE, THEIRS), 0.0208284958),
    "nst": (partial(_over, losses.selectivity_transfer, MINE, THEIRS), 0.7589022583),
    "sp": (lambda: losses.similarity_preserving(MINE[-1], THEIRS[-1]), 0.2019790653),
    "rkd, distance": (lambda: losses.rkd_distance(*POOLED), 0.0948548738),
    "rkd, angle": (lambda: losses.rkd_angle(*POOLED), 0.0840813822),
    "rkd": (lambda: 25 * losses.rkd_distance(*POOLED) + 50 * losses.rkd_angle(*POOLED), 6.5754409565),
    "pkt": (lambda: losses.probabilistic_transfer(*POOLED), 0.1774261338),
    "hcl": (_hcl, 1.0332608760),
    "ofd": (_ofd, 17.0580958713),
    "vid": (_vid, 0.8505379234),
}


@pytest.mark.parametrize("name", VECTORS)
def test_published_value(name: str) -> None:
    compute, wanted = VECTORS[name]
    assert float(compute()) == pytest.approx(wanted, abs=1e-9, rel=1e-8)


def test_kdsvd_whose_published_value_was_taken_in_single_precision() -> None:
    mine = [g((4, 6, 8, 8), 0.2), g((4, 8, 4, 4), 0.4)]
    theirs = [g((4, 5, 8, 8), 1.2), g((4, 7, 4, 4), 1.4)]
    assert float(losses.singular_flow(mine, theirs).mean()) == pytest.approx(0.0295914784, rel=1e-6)
    assert float(losses.singular_flow(mine, theirs).mean()) == pytest.approx(0.0295914812, abs=1e-10)


@pytest.mark.parametrize(("mean", "deviation", "wanted"), [(0.1, 0.8, -0.6033023166), (-0.3, 0.5, -0.5295735683)])
def test_ofd_margin(mean: float, deviation: float, wanted: float) -> None:
    found = losses.normal_margin(*torch.tensor([[mean], [deviation]], dtype=torch.float64))
    assert float(found) == pytest.approx(wanted, abs=1e-9)


def test_ofd_margin_of_a_channel_that_is_hardly_ever_below_zero() -> None:
    assert losses.normal_margin(torch.tensor([2.0]), torch.tensor([0.5])).tolist() == [-1.5]


def test_crd_over_two_calls() -> None:
    memory = Memory(torch.arange(12) % 3, width=6, momentum=0.5).double()
    memory.student.copy_(unit((12, 6), 0.3))
    memory.teacher.copy_(unit((12, 6), 0.9))
    mine, theirs = unit((4, 6), 1.7), unit((4, 6), 2.3)
    rows = torch.tensor([0, 5, 7, 11])
    candidates = torch.tensor([[0, 1, 2, 3, 4, 6], [5, 0, 1, 2, 8, 9], [7, 3, 4, 10, 11, 1], [11, 2, 6, 8, 9, 10]])

    def scores() -> list[Tensor]:
        pairs = ((mine, memory.teacher), (theirs, memory.student))
        return [losses.contrast_logits(anchors, bank, candidates, 0.07) for anchors, bank in pairs]

    frozen = [losses.log_normaliser(one, 12) for one in scores()]
    assert [float(z.exp()) for z in frozen] == pytest.approx([1634034.09599, 2167768.53018], rel=1e-10)
    halves = [losses.contrast_nce(one, z, 12).mean() for one, z in zip(scores(), frozen, strict=True)]
    assert float(halves[0]) == pytest.approx(14.2090113963, abs=1e-9)
    assert float(sum(halves)) == pytest.approx(29.7473374236, abs=1e-9)
    memory.move(rows, mine, theirs)
    assert float(memory.student[5, 0]) == pytest.approx(-0.6632774065, abs=1e-9)
    again = [losses.contrast_nce(one, z, 12).mean() for one, z in zip(scores(), frozen, strict=True)]
    assert float(sum(again)) == pytest.approx(13.7201140535, abs=1e-9)
    memory.move(rows, mine, theirs)
    assert float(memory.student[5, 0]) == pytest.approx(-0.6185569374, abs=1e-9)
