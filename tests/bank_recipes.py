"""Recipes whose frozen outputs can be banked, and what is planned for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from builders import toy_recipe
from safetensors.torch import load_file
from torch import Tensor

from crossdistill import Dataset, Network, Recipe, Stage
from crossdistill.methods import Specialise
from crossdistill.planning.plan import Plan, prepare
from crossdistill.planning.sources import BankChoice

EPOCHS = 4


def recipe(
    *stages: Stage, dataset: Dataset | None = None, teachers: Mapping[str, Network] | None = None, **fields: Any
) -> Recipe:
    chosen = {} if teachers is None else {"teachers": teachers}
    return toy_recipe(*stages, data=dataset, **chosen, **fields)


def stage(method: Any, source: str = "auto", **fields: Any) -> Stage:
    return Stage.model_validate({"method": method, "epochs": EPOCHS, "batch_size": 24, "source": source, **fields})


def masks(source: str = "auto") -> Stage:
    taps = {"teacher-0": ("joint", "hidden"), "teacher-1": ("hidden",)}
    return stage(Specialise(taps=taps), source, trains=())


def planned(made: Recipe, chosen: Any = None) -> Plan:
    return prepare(made, made.data, torch.device("cpu"), chosen)


def choices(made: Recipe, number: int = 0) -> dict[str, BankChoice]:
    return {f"{one.source} {one.want}": one for one in planned(made).jobs[number].choices}


def weights(out: Path) -> dict[str, Tensor]:
    files = [*sorted((out / "stages").glob("*/*.safetensors")), out / "student" / "model.safetensors"]
    return {f"{file.parent.name}/{file.stem}/{k}": v for file in files for k, v in load_file(file).items()}


def assert_close(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)
