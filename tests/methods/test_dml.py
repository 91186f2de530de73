"""Mutual learning, and the distances between members of MGDFR."""

import pytest
import torch
from stand_ins import DENSE, SPEC, Cast, rows_of

from crossdistill.losses import distillation_kl, squared_error
from crossdistill.methods import DML, Collaborate

THREE = {"a": SPEC, "b": SPEC}


def test_the_terms_by_hand() -> None:
    cast = Cast(DML(temperature=1.0, averaged=True), THREE)
    weights = cast.weights()
    assert {name: weights[name] for name in weights if name.startswith("task")} == {
        "task/a": 1.0,
        "task/b": 1.0,
        "task/student": 1.0,
    }
    assert {weights[name] for name in weights if name.startswith("kl")} == {0.5}
    assert len(weights) == 9
    wanted = distillation_kl(cast.logits("student"), cast.logits("a"), 1.0)
    torch.testing.assert_close(cast.value("kl/a->student"), wanted)


def test_by_default_peers_are_added_up_at_four_degrees() -> None:
    cast = Cast(DML(), THREE)
    assert set(cast.weights().values()) == {1.0}
    wanted = distillation_kl(cast.logits("a"), cast.logits("b"), 4.0)
    torch.testing.assert_close(cast.value("kl/b->a"), wanted)


@pytest.mark.parametrize("joint", [False, True])
def test_the_side_that_teaches_gets_no_gradient(joint: bool) -> None:
    cast = Cast(Collaborate() if joint else DML(), {"a": SPEC})
    leaf = torch.randn(8, 4, requires_grad=True)
    teacher = cast.teachers["a"]
    teacher.given = dict.fromkeys(cast.method.needs()["a"], leaf)
    assert cast.value("kl/a->student").sum().requires_grad == joint


def test_squared_distances_once_for_two_members() -> None:
    cast = Cast(Collaborate(distance="mse", weight_distil=2.0), THREE)
    weights = cast.weights()
    assert [name for name in weights if name.startswith("mse")] == ["mse/a-b", "mse/a-student", "mse/b-student"]
    assert weights["mse/a-b"] == 2.0
    torch.testing.assert_close(cast.value("mse/a-b"), squared_error(cast.logits("a"), cast.logits("b")))


def test_the_released_distance_of_dense_logits() -> None:
    batch = rows_of(targets=torch.randint(0, 4, (8, 6, 4)))
    whole = Cast(Collaborate(distance="mse"), {"a": DENSE}, DENSE)
    torch.testing.assert_close(
        whole.value("mse/a-student", batch), squared_error(whole.logits("a"), whole.logits("student"))
    )
    released = Cast(Collaborate(distance="mse-released"), {"a": DENSE}, DENSE)
    found = released.value("mse/a-student", batch)
    apart = (released.logits("a")[0, -1] - released.logits("student")[0, -1]).square().mean()
    assert float(found.sum() / 8) == pytest.approx(float(apart))
    assert bool((found[1:] == 0).all())
    plain = Cast(Collaborate(distance="mse-released"), {"a": SPEC})
    torch.testing.assert_close(plain.value("mse/a-student"), squared_error(plain.logits("a"), plain.logits("student")))
