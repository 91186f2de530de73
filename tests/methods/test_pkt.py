"""Probabilistic knowledge transfer."""

import torch
from stand_ins import OTHER, Cast, rows_of

from crossdistill.losses import probabilistic_transfer
from crossdistill.methods.pkt import PKT


def test_the_terms_by_hand() -> None:
    cast = Cast(PKT(), {"a": OTHER, "b": OTHER})
    assert cast.weights() == {"task": 1.0, "pkt/a": 15000.0, "pkt/b": 15000.0}
    wanted = probabilistic_transfer(*cast.features("student", "fc"), *cast.features("a", "end"))
    torch.testing.assert_close(cast.value("pkt/a"), wanted)


def test_rows_that_the_teacher_did_not_see_are_no_neighbours() -> None:
    cast = Cast(PKT(), absent=("mm",))
    seen = torch.arange(8) % 2 == 0
    batch = rows_of(present={"mm": seen})
    (mine,), (theirs,) = cast.features("student", "fc"), [cast.outputs("mm", batch).features["end"]]
    torch.testing.assert_close(cast.value("pkt/mm", batch), probabilistic_transfer(mine[seen], theirs))
