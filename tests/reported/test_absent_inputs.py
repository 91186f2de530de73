"""Networks that read several modalities, on rows that lack one: left out and said, or read with a default."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Both, Heard
from torch import Tensor, nn

from crossdistill import Dataset, Live, Network, Recipe, Stage, run
from crossdistill.testing import toy_dataset

TWO = toy_dataset(("first", "second"), rows=60)
KD = (Stage(method="supervised", learner="t", epochs=1), Stage(method="kd", epochs=2))


def linear() -> nn.Module:
    return nn.Linear(6, 4)


def with_absent() -> Dataset:
    return toy_dataset(("first", "second"), rows=100, absent={"second": 0.3})


def test_d_a_teacher_that_lacks_an_input_says_how_many_rows(tmp_path: Path) -> None:
    data = with_absent()
    teacher = Network(Both(), ("first", "second"))
    recipe = Recipe(data=data, student=Network(linear(), "first"), teachers={"t": teacher}, stages=KD)
    says = Heard()
    run(recipe, tmp_path / "out", display=says)
    train = data.splits["train"]
    count = int((~data.present["second"][train]).sum())
    said = [line for line in says.lines if "'t'" in line and f"{count} of {len(train)} train rows" in line]
    assert len(said) == 1
    assert "second" in said[0]
    assert "needs='any'" in said[0]
    assert not any("'first' leaves out" in line for line in says.lines)


@pytest.mark.parametrize("absent", [None, torch.full((2, 4), 0.5)])
def test_d_needs_any_reads_a_default_for_what_is_absent(tmp_path: Path, absent: Tensor | None) -> None:
    data = with_absent()
    given = None if absent is None else {"second": absent}
    module = Both()
    network = Network(module, ("first", "second"), needs="any", absent=given)
    rows = data.splits["train"]
    batch = data.batch(rows)
    network.probe(batch)
    outputs = Live("t", network)(batch)
    assert outputs.rows is None
    filled = data.inputs["second"][rows].clone()
    filled[~data.present["second"][rows]] = 0.0 if absent is None else absent
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, module(data.inputs["first"][rows], filled))
    says = Heard()
    recipe = Recipe(data=data, student=Network(linear(), "first"), teachers={"t": network}, stages=KD)
    run(recipe, tmp_path / "out", display=says)
    assert any("'t' reads" in line and "train rows" in line for line in says.lines)
    plain = Network(module, ("first", "second"))
    assert network.code_text() != plain.code_text()


def test_d_a_row_without_any_input_is_left_out() -> None:
    present = {"first": np.arange(60) % 2 == 0, "second": np.arange(60) % 3 == 0}
    inputs = {name: value.numpy() for name, value in TWO.inputs.items()}
    data = Dataset.from_arrays("gaps", inputs, TWO.targets, present=present)
    network = Network(Both(), ("first", "second"), needs="any")
    network.probe(data.example())
    rows = torch.arange(6)
    assert Live("t", network)(data.batch(rows)).rows.tolist() == [0, 2, 3, 4]
