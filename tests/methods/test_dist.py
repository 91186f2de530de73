"""DIST: its terms by hand, what it does not care for, rows that nobody saw."""

import torch
from facts import raises
from stand_ins import DENSE, SPEC, Cast, data_of, rows_of

from crossdistill.errors import ApplicabilityError
from crossdistill.methods.dist import DIST, unlikeness

TEMPERATURE = 3.0


def test_the_terms_by_hand() -> None:
    cast = Cast(DIST(beta=2.0, gamma=3.0, temperature=TEMPERATURE), {"mm": SPEC})
    assert cast.weights() == {"task": 1.0, "classes/mm": 1.0, "rows/mm": 1.0}
    mine, theirs = ((cast.logits(name).double() / TEMPERATURE).softmax(1) for name in ("student", "mm"))
    by_row = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mine, theirs, strict=True)]
    by_class = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mine.T, theirs.T, strict=True)]
    classes, rows = 18 * (1 - torch.stack(by_row)), 27 * (1 - torch.stack(by_class)).mean()
    torch.testing.assert_close(cast.value("classes/mm"), classes, check_dtype=False, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cast.value("rows/mm"), rows, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_scale_and_shift_do_not_count_and_constants_have_a_finite_gradient() -> None:
    one = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unlikeness(one, 3 * one.detach() - 2), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(unlikeness(one, -one.detach()), torch.full((5,), 2.0, dtype=torch.float64))
    constant = torch.full((2, 3), 0.25, requires_grad=True)
    unlikeness(constant, torch.rand(2, 3)).sum().backward()
    assert bool(constant.grad.isfinite().all())


def test_rows_that_the_teacher_did_not_see_are_no_part_of_a_class() -> None:
    present = torch.arange(8) < 6
    cast = Cast(DIST(), {"mm": SPEC}, absent=["mm"])
    batch = rows_of(inputs={"mm": torch.zeros(8, 1)}, present={"mm": present})
    mine, theirs = (cast.logits(name)[present].softmax(1) for name in ("student", "mm"))
    torch.testing.assert_close(cast.value("rows/mm", batch), unlikeness(mine.T, theirs.T).mean())
    assert not bool(cast.value("classes/mm", batch)[~present].any())
    nobody = rows_of(inputs={"mm": torch.zeros(8, 1)}, present={"mm": torch.zeros(8, dtype=torch.bool)})
    assert float(cast.value("rows/mm", nobody)) == 0


def test_what_cannot_apply() -> None:
    with raises(ApplicabilityError, "dense"):
        DIST().build(DENSE, {"mm": DENSE}, data_of())
