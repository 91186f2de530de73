"""Class weights of supervised training: their normalisation and gradient, against PyTorch's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import cross_entropy

from crossdistill import Dataset, OutputSpec, Recipe, Signal, Stage, run
from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ApplicabilityError, RecipeError
from crossdistill.method import STUDENT, DataSpec, Progress
from crossdistill.methods import Supervised
from crossdistill.testing import FakeTeacher, toy_network

TARGETS = torch.tensor([0] * 20 + [1] * 6 + [2] * 4)
GIVEN = (0.5, 2.0, 7.0)


def given(logits: Tensor) -> FakeTeacher:
    return FakeTeacher("given", OutputSpec((3,)), given={Signal.LOGITS: logits})


def step_of(weights: Any, logits: Tensor, rows: Tensor, targets: Tensor = TARGETS, known: Tensor = TARGETS) -> Any:
    data = DataSpec(len(known), 3, known, torch.arange(len(known)))
    method = Supervised(class_weights=weights).build(OutputSpec((3,)), {}, data)
    batch = Batch({}, ids=rows, targets=targets[rows], total_rows=len(rows))
    return method, batch, method(batch, given(logits), {}, Progress())


@pytest.mark.parametrize("weights", ["balanced", GIVEN])
def test_d_class_weights_have_the_loss_and_gradient_of_torch(weights: Any) -> None:
    logits = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    method, batch, step = step_of(weights, logits, torch.arange(30))
    assert step.terms["task"].value.shape == (30,)
    loss = step.loss(30)
    own = torch.autograd.grad(loss, logits)[0]
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=TARGETS.numpy())
    expected = torch.as_tensor(balanced if weights == "balanced" else weights, dtype=torch.float64)
    whole = cross_entropy(logits, TARGETS, weight=expected)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(own, torch.autograd.grad(whole, logits)[0], rtol=1e-6, atol=1e-9)
    judged: Mapping[str, Tensor] = method.validate(batch, given(logits), {})
    torch.testing.assert_close(judged[STUDENT].mean(), whole, rtol=1e-6, atol=0)


def test_d_class_weights_add_up_over_parts_and_skip_rows_without_a_label() -> None:
    logits = torch.randn(30, 3, requires_grad=True)
    known = TARGETS.clone()
    known[::3] = MISSING_TARGET
    _, _, whole = step_of("balanced", logits, torch.arange(30), known, known)
    parts = [step_of("balanced", logits, rows, known, known)[2] for rows in torch.arange(30).split(7)]
    torch.testing.assert_close(sum(part.terms["task"].reduced(30) for part in parts), whole.loss(30))
    assert not whole.terms["task"].value[::3].any()
    # A factor in common changes nothing.
    _, _, more = step_of(tuple(3 * one for one in GIVEN), logits, torch.arange(30))
    _, _, less = step_of(GIVEN, logits, torch.arange(30))
    torch.testing.assert_close(more.loss(30), less.loss(30))


def test_d_class_weights_of_a_class_without_rows() -> None:
    logits = torch.randn(30, 3)
    two = torch.where(TARGETS == 2, 1, TARGETS)
    _, _, step = step_of("balanced", logits, torch.arange(30), two, two)
    expected = torch.tensor([30 / (2 * 20), 30 / (2 * 10), 0.0])
    torch.testing.assert_close(step.loss(30), cross_entropy(logits, two, weight=expected))


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 0.0, 0.0)])
def test_d_class_weights_that_do_not_fit(weights: tuple[float, ...]) -> None:
    with raises(ApplicabilityError, "class_weights"):
        step_of(weights, torch.randn(30, 3), torch.arange(30))


def test_d_class_weights_in_a_recipe(tmp_path: Path) -> None:
    targets = np.array([0] * 80 + [1] * 20)
    data = Dataset.from_arrays("own", {"first": np.random.default_rng(0).random((100, 6))}, targets)

    def recipe(weights: Any) -> Recipe:
        stage = Stage(method=Supervised(class_weights=weights), epochs=1, steps=2)
        return Recipe(data=data, student=toy_network(("first",), classes=2), stages=(stage,))

    run(recipe("balanced"), tmp_path / "balanced")
    changed = recipe(None).overridden(["stages.supervised.method.class_weights=[1, 2]"])
    assert changed.stages[0].method.class_weights == (1.0, 2.0)
    with raises(RecipeError, "class_weights", 3, 2):
        run(recipe((1.0, 2.0, 3.0)), tmp_path / "other")
