"""Contrastive distillation: what is stored, when it moves, whose labels count."""

import math

import pytest
import torch
from facts import raises
from stand_ins import CLASSES, OTHER, ROWS, Cast, data_of, rows_of

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError
from crossdistill.losses import contrast_logits, contrast_nce, log_normaliser
from crossdistill.method import Progress
from crossdistill.methods.crd import CRD
from crossdistill.nets.memory import Memory

FEW = CRD(negatives=4, width=6, temperature=0.5)


def memory_of(cast: Cast, teacher: str = "mm") -> Memory:
    found = cast.method.get_submodule(f"memories.{teacher}")
    assert isinstance(found, Memory)
    return found


def test_the_terms_by_hand() -> None:
    cast = Cast(FEW, {"a": OTHER, "b": OTHER})
    assert cast.weights() == {"task": 0.5, "crd/a": 0.25, "crd/b": 0.25}
    memory = memory_of(cast, "a")
    index = torch.arange(ROWS)
    candidates = memory.candidates(index, 4, step=7)
    sides = [cast.method.get_submodule(f"{side}.a") for side in ("mine", "theirs")]
    mine, theirs = sides[0](*cast.features("student", "fc")), sides[1](*cast.features("a", "end"))
    wanted = torch.zeros(ROWS)
    for anchors, bank in ((mine, memory.teacher), (theirs, memory.student)):
        logits = contrast_logits(anchors, bank, candidates, 0.5)
        wanted = wanted + contrast_nce(logits, log_normaliser(logits, ROWS), ROWS)
    found = cast.step(progress=Progress(epoch=1, step=2, steps=5)).terms["crd/a"].value
    torch.testing.assert_close(found, wanted)


def test_the_memory_moves_after_the_step_and_the_constant_stays() -> None:
    cast = Cast(FEW)
    memory = memory_of(cast)
    before = memory.student.clone()
    batch = rows_of().select(torch.tensor([1, 4, 6]))
    step = cast.step(batch)
    assert torch.equal(memory.student, before)
    assert bool(memory.normaliser.isinf().all())
    cast.method.after_step(batch, step)
    moved = (memory.student != before).any(1).nonzero().flatten()
    assert moved.tolist() == [1, 4, 6]
    constant = memory.normaliser.clone()
    assert bool(constant.isfinite().all())
    cast.method.after_step(rows_of(), cast.step())
    assert torch.equal(memory.normaliser, constant)
    each = Cast(FEW.model_copy(update={"normaliser": "each"}))
    for _ in range(2):
        before = memory_of(each).normaliser.clone()
        each.method.after_step(rows_of(), each.step())
        assert not torch.equal(memory_of(each).normaliser, before)


def test_both_maps_learn_and_the_memory_does_not() -> None:
    cast = Cast(FEW)
    cast.value("crd/mm").sum().backward()
    assert {name.split(".")[0] for name, own in cast.method.named_parameters() if own.grad is not None} == {
        "mine",
        "theirs",
    }


def test_ids_are_any_numbers() -> None:
    ids = torch.tensor([30, 7, 12, 5, 99, 41, 8, 2])
    cast = Cast(FEW, data=data_of(ids=ids))
    batch = rows_of(ids=ids[[4, 1]], targets=torch.tensor([0, 1]))
    step = cast.step(batch)
    assert step.stash["mm/index"].tolist() == [4, 1]


def test_hidden_labels_are_not_used() -> None:
    hidden = torch.tensor([0, 1, MISSING_TARGET, 3, 0, MISSING_TARGET, 2, 3])
    memory = memory_of(Cast(FEW, data=data_of(targets=hidden)))
    assert memory.class_size.tolist() == [2, 1, 1, 2, 2, 1, 1, 2]
    none = memory_of(Cast(FEW, data=data_of(targets=None)))
    assert none.class_size.tolist() == [1] * ROWS


def test_one_class_and_dense_labels_are_refused() -> None:
    with raises(ApplicabilityError, 8, "class"):
        Cast(FEW, data=data_of(targets=torch.zeros(ROWS, dtype=torch.int64)))
    with raises(ApplicabilityError, "dense"):
        Cast(FEW, data=data_of(targets=torch.zeros(ROWS, 6, 4, dtype=torch.int64)))


def test_at_the_start_the_loss_is_that_of_chance() -> None:
    """With every score alike, each side is log(1 + M/x) + M log(1 + x/M) with x = 1: the closed form of the release."""
    rows, negatives = 500, 64
    targets = torch.arange(rows) % CLASSES
    data = data_of(rows=rows, targets=targets, ids=torch.arange(rows))
    cast = Cast(CRD(negatives=negatives, temperature=100.0), data=data)
    wanted = 2 * (math.log(1 + negatives) + negatives * math.log(1 + 1 / negatives))
    assert float(cast.value("crd/mm").detach().mean()) == pytest.approx(wanted, rel=0.01)
