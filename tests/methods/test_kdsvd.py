"""Distillation of singular vectors."""

import torch
from facts import raises
from stand_ins import OTHER, Cast, data_of

from crossdistill.errors import ApplicabilityError
from crossdistill.losses import singular_flow
from crossdistill.methods.kdsvd import KDSVD
from crossdistill.outputs import OutputSpec


def test_the_terms_by_hand() -> None:
    cast = Cast(KDSVD(k=2))
    assert cast.weights() == {"task": 1.0, "kdsvd/mm": 1.0}
    wanted = singular_flow(cast.features("student", "early", "late"), cast.features("mm", "first", "second"), 2)
    torch.testing.assert_close(cast.value("kdsvd/mm"), wanted)


def test_a_flow_needs_two_stages() -> None:
    one = OutputSpec(logits=(4,), features={"only": (3, 4, 4), "fc": (7,)})
    with raises(ApplicabilityError, "kdsvd", 2, "student", 1):
        KDSVD().build(one, {"mm": OTHER}, data_of())
