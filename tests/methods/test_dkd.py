"""Decoupled distillation: warm-up, rows without a label, what is refused."""

import pytest
import torch
from facts import raises
from stand_ins import DENSE, SPEC, Cast, data_of, rows_of

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError
from crossdistill.losses import other_classes_kl, target_class_kl
from crossdistill.methods.dkd import DKD
from crossdistill.outputs import OutputSpec


def test_the_terms_by_hand() -> None:
    cast = Cast(DKD(alpha=2.0), {"a": SPEC, "b": SPEC})
    assert cast.weights(epoch=9) == {
        "task": 1.0,
        "target/a": 0.25,
        "others/a": 0.25,
        "target/b": 0.25,
        "others/b": 0.25,
    }
    given = (cast.logits("student"), cast.logits("a"), torch.arange(8) % 4, 4.0)
    torch.testing.assert_close(cast.value("target/a"), 2 * target_class_kl(*given))
    torch.testing.assert_close(cast.value("others/a"), 8 * other_classes_kl(*given))


@pytest.mark.parametrize("unlabelled", ["teacher", "skip"])
def test_rows_without_a_label(unlabelled: str) -> None:
    labelled = torch.arange(8) % 2 == 0
    cast = Cast(DKD.model_validate({"unlabelled": unlabelled}), {"mm": SPEC})
    batch = rows_of(labelled=labelled)
    guessed = cast.logits("mm").argmax(1)
    instead = guessed if unlabelled == "teacher" else torch.full((8,), MISSING_TARGET)
    targets = torch.where(labelled, torch.arange(8) % 4, instead)
    wanted = target_class_kl(cast.logits("student"), cast.logits("mm"), targets, 4.0)
    torch.testing.assert_close(cast.value("target/mm", batch), wanted)
    assert bool((wanted[~labelled] > 0).any()) == (unlabelled == "teacher")


def test_what_cannot_apply() -> None:
    two = OutputSpec(logits=(2,))
    with raises(ApplicabilityError, "2 classes"):
        DKD().build(two, {"mm": two}, data_of())
    with raises(ApplicabilityError, "dense"):
        DKD().build(DENSE, {"mm": DENSE}, data_of())
