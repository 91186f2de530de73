"""ReviewKD: stages, warm-up, any sizes."""

import pytest
import torch
from stand_ins import Cast

from crossdistill.methods.reviewkd import ReviewKD


def test_weights_and_warm_up() -> None:
    cast = Cast(ReviewKD())
    assert cast.weights(epoch=0) == {"task": 1.0, "reviewkd/mm": pytest.approx(0.25)}
    assert cast.weights(epoch=30)["reviewkd/mm"] == 5.0


@pytest.mark.parametrize("pooled", [True, False])
def test_stages_have_the_teachers_sizes(pooled: bool) -> None:
    cast = Cast(ReviewKD(pooled=pooled))
    review = cast.method.get_submodule("reviews.mm")
    maps = cast.features("student", "early", "late")
    stages = review([*maps, maps[-1].mean(dim=(2, 3), keepdim=True)] if pooled else maps)
    wanted = [(2, 5, 5), (6, 2, 2), *([(6, 1, 1)] if pooled else [])]
    assert [tuple(stage.shape[1:]) for stage in stages] == wanted
    value = cast.value("reviewkd/mm")
    value.sum().backward()
    assert value.shape == (8,)
    assert all(own.grad is not None for own in cast.method.parameters())


def test_a_perfect_student_has_no_loss() -> None:
    cast = Cast(ReviewKD(pooled=False))
    review = cast.method.get_submodule("reviews.mm")
    fused = review(cast.features("student", "early", "late"))
    given = dict(zip(("first", "second"), fused, strict=True))
    teacher = cast.teachers["mm"]
    teacher.given = {signal: given[signal.tap].detach() for signal in cast.method.needs()["mm"]}
    assert float(cast.value("reviewkd/mm").detach().abs().max()) < 1e-10
    assert torch.is_tensor(fused[0])
