"""MST-Distill's multi-level logit distillation."""

import pytest
import torch
from facts import raises
from stand_ins import DENSE, SPEC, Cast, data_of, rows_of

from crossdistill.errors import ApplicabilityError
from crossdistill.losses import class_correlation, distillation_kl, row_correlation
from crossdistill.methods.mlld import MLLD


@pytest.mark.parametrize("correlations", ["mean", "published"])
def test_the_terms_by_hand(correlations: str) -> None:
    config = MLLD.model_validate({"temperatures": (2.0, 5.0), "correlations": correlations})
    cast = Cast(config, {"a": SPEC, "b": SPEC})
    assert cast.weights(epoch=60) == {
        "task": 0.875,
        **{f"{level}/{name}": 0.0625 for name in "ab" for level in ("rows", "classes", "batch")},
    }
    mine, theirs = cast.logits("student"), cast.logits("b")
    wanted = torch.stack([distillation_kl(mine, theirs, t) for t in (2.0, 5.0)]).mean(0) / 3
    torch.testing.assert_close(cast.value("rows/b"), wanted)
    for name, loss in (("classes", class_correlation), ("batch", row_correlation)):
        both = [loss(mine, theirs, t, correlations) for t in (2.0, 5.0)]
        torch.testing.assert_close(cast.value(f"{name}/b"), torch.stack(both).mean() / 3)


def test_correlations_are_of_rows_that_the_teacher_saw() -> None:
    cast = Cast(MLLD(temperatures=(2.0,)), {"mm": SPEC}, absent=("mm",))
    seen = torch.arange(8) % 3 != 0
    batch = rows_of(present={"mm": seen})
    mine, theirs = cast.logits("student")[seen], cast.outputs("mm", batch).logits
    assert theirs is not None
    torch.testing.assert_close(cast.value("batch/mm", batch), row_correlation(mine, theirs, 2.0, "mean") / 3)
    rows = cast.value("rows/mm", batch)
    assert rows[~seen].tolist() == [0.0] * 3


def test_dense_labels_are_refused() -> None:
    with raises(ApplicabilityError, "mlld", "row"):
        MLLD().build(DENSE, {"mm": DENSE}, data_of())
