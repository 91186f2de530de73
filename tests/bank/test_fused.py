"""Fused teachers: coefficients by row, parts with and without banks, and what each part is trusted with."""

import math

import torch
from builders import rows_of
from facts import raises
from torch import Tensor

from crossdistill import OutputSpec, Signal, losses
from crossdistill.bank.fused import Fused, Fusion
from crossdistill.errors import SettingError, ShapeError, SignalError
from crossdistill.method import DataSpec, Progress
from crossdistill.methods import KD
from crossdistill.testing import FakeTeacher

SPEC = OutputSpec(logits=(4,))
ALPHA = {"cnn": 0.7, "clip": 0.3}


def parts(**modalities: tuple[str, ...]) -> dict[str, FakeTeacher]:
    return {name: FakeTeacher(name, SPEC, modalities.get(name, ())) for name in ALPHA}


def test_logits_are_the_weighted_sum_of_any_number_of_parts() -> None:
    both, batch = parts(), rows_of()
    z = {name: part(batch).need(Signal.LOGITS) for name, part in both.items()}
    fused = Fused(both, ALPHA)(batch)
    torch.testing.assert_close(fused.need(Signal.LOGITS), 0.7 * z["cnn"] + 0.3 * z["clip"])
    three = both | {"third": FakeTeacher("third", SPEC)}
    third = three["third"](batch).need(Signal.LOGITS)
    found = Fused(three, {"cnn": 2.0, "clip": 1.0, "third": 1.0}, temperatures={"clip": 0.5})(batch)
    wanted = 0.5 * z["cnn"] + 0.25 * z["clip"] / 0.5 + 0.25 * third
    torch.testing.assert_close(found.need(Signal.LOGITS), wanted)


def test_rows_that_a_part_lacks_are_those_of_the_others() -> None:
    both = parts(clip=("text",))
    batch = rows_of(inputs={"text": torch.zeros(8, 1)}, present={"text": torch.arange(8) % 2 == 0})
    fused = Fused(both, ALPHA)(batch)
    assert fused.rows is not None
    assert fused.rows.tolist() == list(range(8))
    own = both["cnn"](batch).need(Signal.LOGITS)
    torch.testing.assert_close(fused.need(Signal.LOGITS)[1::2], own[1::2])
    torch.testing.assert_close(
        fused.need(Signal.LOGITS)[::2], 0.7 * own[::2] + 0.3 * both["clip"](batch).need(Signal.LOGITS)
    )
    nothing = Fused(parts(cnn=("text",), clip=("text",)), ALPHA)(batch)
    assert nothing.rows is not None
    assert nothing.rows.tolist() == [0, 2, 4, 6]


def test_it_teaches_any_method_and_parts_are_called_once() -> None:
    both, batch = parts(), rows_of()
    student = FakeTeacher("student", SPEC)
    fused = Fused(both, ALPHA)
    data = DataSpec(8, 4)
    step = KD(temperature=3.0).build(SPEC, {"fused": SPEC}, data)(batch, student, {"fused": fused}, Progress())
    wanted = losses.distillation_kl(student(batch).need(Signal.LOGITS), fused(batch).need(Signal.LOGITS), 3.0)
    torch.testing.assert_close(step.terms["kd/fused"].value, wanted)
    assert len(both["cnn"].record.ids) == 2


def derived(cnn: Tensor, clip: Tensor, alpha: float) -> Tensor:
    """The trusted coefficient of the second part, written with loops over numbers."""
    found = []
    for row in range(len(cnn)):
        p, q = ([math.exp(v) for v in z[row].tolist()] for z in (cnn, clip))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        certain = 1 - sum(-v * math.log(v) for v in q) / math.log(len(q))
        alike = sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True))
        found.append((1 - alpha) * certain * alike)
    return torch.tensor(found)


def test_a_part_is_trusted_where_it_is_confident_and_agrees() -> None:
    torch.manual_seed(0)
    cnn, clip = (torch.randn(16, 5, dtype=torch.float64) * 3 for _ in range(2))
    found = losses.trusted_coefficients(torch.stack([cnn, clip]), torch.tensor([[0.7], [0.3]]).expand(2, 16))
    torch.testing.assert_close(found[1], derived(cnn, clip, 0.7), check_dtype=False, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.sum(0), torch.ones(16), check_dtype=False)
    certain = torch.tensor([[30.0, 0, 0], [30.0, 0, 0], [30.0, 0, 0]])
    other = torch.tensor([[30.0, 0, 0], [0, 30.0, 0], [0, 0, 0]])
    found = losses.trusted_coefficients(torch.stack([certain, other]), torch.tensor([[0.7], [0.3]]).expand(2, 3))
    torch.testing.assert_close(found[1], torch.tensor([0.3, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_trust_needs_something_to_agree_with() -> None:
    both = parts(cnn=("text",))
    batch = rows_of(inputs={"text": torch.zeros(8, 1)}, present={"text": torch.zeros(8, dtype=torch.bool)})
    found = Fused(both, ALPHA, per_sample=True)(batch).need(Signal.LOGITS)
    torch.testing.assert_close(found, both["clip"](batch).need(Signal.LOGITS))


def test_wrong_parts_are_refused() -> None:
    with raises(SettingError, "'clip'", "coefficients"):
        Fused(parts(), {"cnn": 1.0})
    with raises(SettingError, -0.1):
        Fused(parts(), {"cnn": 1.1, "clip": -0.1})
    with raises(SettingError, "temperatures", "'clp'", "'clip'"):
        Fusion(ALPHA, {"clp": 2.0})
    with raises(SettingError, "temperatures.clip", 0.0):
        Fusion(ALPHA, {"clip": 0.0})
    with raises(ShapeError, "(4,)", "(5,)"):
        Fused(parts() | {"clip": FakeTeacher("clip", OutputSpec(logits=(5,)))}, ALPHA)
    with raises(SignalError, "embedding"):
        Fused(parts(), ALPHA).select({Signal.EMBEDDING})
