"""Similarity-preserving distillation."""

import torch
from stand_ins import Cast

from crossdistill.losses import similarity_preserving
from crossdistill.methods.sp import SP
from crossdistill.outputs import OutputSpec


def test_the_last_maps_are_compared() -> None:
    cast = Cast(SP())
    assert cast.weights() == {"task": 1.0, "sp/mm": 3000.0}
    wanted = similarity_preserving(*cast.features("student", "late"), *cast.features("mm", "second"))
    torch.testing.assert_close(cast.value("sp/mm"), wanted)


def test_a_network_without_maps_shows_its_last_vector() -> None:
    cast = Cast(SP(), {"flat": OutputSpec(logits=(4,), features={"a": (3,), "b": (5,)})})
    wanted = similarity_preserving(*cast.features("student", "late"), *cast.features("flat", "b"))
    torch.testing.assert_close(cast.value("sp/flat"), wanted)
