"""FitNets' hints: which layers meet, and what the student is judged by."""

import pytest
import torch
from stand_ins import OTHER, Cast, rows_of

from crossdistill.losses import squared_error
from crossdistill.method import STUDENT
from crossdistill.methods.hint import Hint
from crossdistill.outputs import Signal


def hints(cast: Cast, teacher: str) -> torch.Tensor:
    pairs = zip(cast.features("student", "late", "fc"), cast.features(teacher, "second", "end"), strict=True)
    return torch.stack(
        [
            squared_error(cast.method.get_submodule(f"regressors.{teacher}:{number}")(mine), theirs)
            for number, (mine, theirs) in enumerate(pairs)
        ]
    ).sum(0)


@pytest.mark.parametrize("regressors", ["fitnets", "released"])
def test_the_terms_by_hand(regressors: str) -> None:
    cast = Cast(Hint.model_validate({"regressors": regressors}), {"a": OTHER, "b": OTHER})
    assert cast.weights() == {"hint/a": 0.5, "hint/b": 0.5}
    assert cast.method.needs()[STUDENT] == frozenset({Signal.feature("late"), Signal.feature("fc")})
    torch.testing.assert_close(cast.value("hint/b"), hints(cast, "b"))
    found = cast.method.validate(rows_of(), cast.student, cast.teachers)[STUDENT]
    torch.testing.assert_close(found, (hints(cast, "a") + hints(cast, "b")) / 2)


def test_a_row_is_judged_by_the_teachers_that_saw_it() -> None:
    cast = Cast(Hint(), {"a": OTHER, "b": OTHER}, absent=("a", "b"))
    seen = {"a": torch.arange(8) < 4, "b": torch.arange(8) % 4 == 0}
    batch = rows_of(present=seen)
    everything = Cast(Hint(), {"a": OTHER, "b": OTHER})
    one, two = hints(everything, "a"), hints(everything, "b")
    wanted = [(one[0] + two[0]) / 2, *one[1:4], two[4]]
    found = cast.method.validate(batch, cast.student, cast.teachers)[STUDENT]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_the_student_gets_its_gradient_through_the_regressors() -> None:
    cast = Cast(Hint())
    leaf = torch.randn(8, 7, requires_grad=True)
    cast.student.given = {Signal.feature("fc"): leaf}
    cast.value("hint/mm").sum().backward()
    assert bool(leaf.grad.abs().sum() > 0)
