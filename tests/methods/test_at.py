"""Attention transfer."""

import pytest
import torch
from stand_ins import OTHER, Cast

from crossdistill.losses import attention_transfer
from crossdistill.methods.at import AT


def test_the_terms_by_hand() -> None:
    cast = Cast(AT(power=3.0), {"a": OTHER, "b": OTHER})
    assert cast.weights() == {"task": 1.0, "at/a": 500.0, "at/b": 500.0}
    pairs = zip(cast.features("student", "early", "late"), cast.features("a", "first", "second"), strict=True)
    wanted = torch.stack([attention_transfer(*pair, 3.0) for pair in pairs]).sum(0)
    torch.testing.assert_close(cast.value("at/a"), wanted)


def test_one_spatial_tap_is_enough() -> None:
    cast = Cast(AT(taps=("late",)))
    assert cast.value("at/mm").tolist() == pytest.approx(
        attention_transfer(*cast.features("student", "late"), *cast.features("mm", "second")).tolist()
    )
