"""Relational distillation."""

import torch
from stand_ins import OTHER, Cast

from crossdistill.losses import rkd_angle, rkd_distance
from crossdistill.methods.rkd import RKD


def test_the_terms_by_hand() -> None:
    cast = Cast(RKD(weight_distance=25, weight_angle=50, fixed=(1, 1)), {"a": OTHER, "b": OTHER})
    assert cast.weights() == {"task": 1.0, "distance/a": 0.5, "angle/a": 0.5, "distance/b": 0.5, "angle/b": 0.5}
    pair = (*cast.features("student", "fc"), *cast.features("a", "end"))
    torch.testing.assert_close(cast.value("distance/a"), 25 * rkd_distance(*pair))
    torch.testing.assert_close(cast.value("angle/a"), 50 * rkd_angle(*pair))


def test_the_published_shares() -> None:
    cast = Cast(RKD())
    assert cast.weights(epoch=30) == {"task": 0.75, "distance/mm": 0.25, "angle/mm": 0.25}
    assert not list(cast.method.parameters())


def test_the_released_embeddings_and_which_of_them_learn() -> None:
    for kind, learns in (("random", False), ("trained", True)):
        cast = Cast(RKD.model_validate({"width": 16, "teacher_map": kind}))
        step = cast.step()
        (step.terms["distance/mm"].value + step.terms["angle/mm"].value).backward()
        got = {name.split(".")[0] for name, own in cast.method.named_parameters() if own.grad is not None}
        assert got == ({"mine", "theirs"} if learns else {"mine"})
