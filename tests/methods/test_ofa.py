"""One-for-all: a prediction at every stage."""

import torch
from facts import raises
from stand_ins import DENSE, SPEC, Cast, data_of, rows_of

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError, SignalError
from crossdistill.losses import ofa
from crossdistill.methods.ofa import OFA
from crossdistill.outputs import OutputSpec

STAGES = ("early", "late", "fc")


def stage_losses(cast: Cast, targets: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for tap, feature in zip(STAGES, cast.features("student", *STAGES), strict=True):
        logits = cast.method.get_submodule(f"projectors.{tap}")(feature)
        found.append(ofa(logits, cast.logits("a"), targets, 1.1, 1.0))
    return found


def test_the_terms_by_hand() -> None:
    cast = Cast(OFA(), {"a": SPEC, "b": SPEC})
    names = [*(f"ofa-{tap}" for tap in STAGES), "final"]
    assert cast.weights() == {"task": 0.5, **{f"{name}/{teacher}": 0.25 for teacher in "ab" for name in names}}
    targets = torch.arange(8) % 4
    for tap, wanted in zip(STAGES, stage_losses(cast, targets), strict=True):
        torch.testing.assert_close(cast.value(f"ofa-{tap}/a"), wanted)
    wanted = torch.nn.functional.cross_entropy(cast.logits("student"), cast.logits("a").softmax(1), reduction="none")
    torch.testing.assert_close(cast.value("final/a"), wanted)


def test_the_released_code() -> None:
    cast = Cast(OFA(stages="mean", final_epsilon=None), {"a": SPEC})
    assert cast.weights() == {"task": 0.5, "ofa/a": 0.5}
    wanted = torch.stack(stage_losses(cast, torch.arange(8) % 4)).mean(0)
    torch.testing.assert_close(cast.value("ofa/a"), wanted)


def test_rows_without_a_label_get_no_bonus() -> None:
    cast = Cast(OFA(), {"a": SPEC})
    labelled = torch.arange(8) < 3
    targets = torch.where(labelled, torch.arange(8) % 4, MISSING_TARGET)
    found = cast.value("ofa-fc/a", rows_of(labelled=labelled))
    torch.testing.assert_close(found, stage_losses(cast, targets)[2])


def test_what_cannot_apply() -> None:
    bare = OutputSpec(logits=(4,))
    with raises(ApplicabilityError, "ofa", "stage", "student"):
        OFA().build(bare, {"mm": SPEC}, data_of())
    with raises(ApplicabilityError, "dense"):
        OFA().build(DENSE, {"mm": DENSE}, data_of())
    with raises(SignalError, "student", "'lat'", "'late'"):
        OFA(taps=("lat",)).build(SPEC, {"mm": SPEC}, data_of())
