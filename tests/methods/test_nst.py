"""Neuron selectivity transfer."""

import torch
from stand_ins import Cast

from crossdistill.losses import selectivity_transfer
from crossdistill.methods.nst import NST


def test_the_terms_by_hand() -> None:
    cast = Cast(NST())
    assert cast.weights() == {"task": 1.0, "nst/mm": 50.0}
    pairs = zip(cast.features("student", "early", "late"), cast.features("mm", "first", "second"), strict=True)
    torch.testing.assert_close(cast.value("nst/mm"), torch.stack([selectivity_transfer(*p) for p in pairs]).sum(0))
