"""What many tests begin with: a display, recipes on toy data, batches of given or drawn inputs, sets of pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.batch import Batch, InputSpec
from crossdistill.data.dataset import Dataset
from crossdistill.network import Network
from crossdistill.recipe import Recipe
from crossdistill.runtime.progress import Quiet
from crossdistill.stage import Stage
from crossdistill.testing import toy_dataset, toy_map_models, toy_models


class Heard(Quiet):
    """Keeps the lines that a run says; ends the program, as Ctrl-C does, after so many steps."""

    def __init__(self, steps: int = 10**9) -> None:
        self.lines: list[str] = []
        self.left = steps

    def say(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, parts: int = 1) -> None:
        self.left -= parts
        if self.left < 0:
            raise KeyboardInterrupt


def toy_recipe(
    *stages: Stage,
    data: Dataset | None = None,
    teachers: int | Mapping[str, Network] = 2,
    normalised: bool = False,
    maps: bool = False,
    **fields: Any,
) -> Recipe:
    """Toy networks on toy data: a student, and so many teachers (or these); by default one stage of distillation.

    `normalised` networks have BatchNorm and dropout, those on `maps` are convolutional; fields are the recipe's own.
    """
    data = toy_dataset() if data is None else data
    count = teachers if isinstance(teachers, int) else 1
    networks = toy_map_models(data, count) if maps else toy_models(data, count, normalised=normalised)
    (name, student), *others = networks.items()
    made: dict[str, Any] = {
        "data": data,
        "student": student,
        "student_name": name,
        "teachers": dict(others) if isinstance(teachers, int) else teachers,
        "stages": stages or (Stage(method="kd", epochs=2, batch_size=48),),
    }
    return Recipe(**(made | fields))


def mst_distill(data: Dataset, teachers: int) -> Recipe:
    """All stages of MST-Distill and a last one of plain distillation, as tiny as they get."""
    names = tuple(toy_models(data, teachers))[1:]
    stages = (
        Stage(method="collaborate", epochs=1, trains=("student", *names), select="last"),
        Stage(method={"name": "specialise", "taps": dict.fromkeys(names, ("joint", "hidden"))}, epochs=1, trains=()),
        Stage(method="route", epochs=1),
        Stage(method="kd", epochs=1, teachers=names),
    )
    return toy_recipe(*stages, data=data, teachers=teachers).tiny()


def rows_of(number: int = 8, **fields: Any) -> Batch:
    """A batch without inputs, of four classes in turn; fields replace or add."""
    return Batch(**({"inputs": {}, "ids": torch.arange(number), "targets": torch.arange(number) % 4} | fields))


def drawn_rows(number: int = 8, width: int = 6, seed: int = 0, name: str = "a") -> Batch:
    """A batch of one input of normal numbers, the same for a seed."""
    drawn: Tensor = torch.randn(number, width, generator=torch.Generator().manual_seed(seed))
    return Batch({name: drawn}, torch.arange(number))


def pictures(spec: InputSpec, rows: int = 20, classes: int = 3, seed: int = 0) -> Dataset:
    """Normal numbers of this specification as the modality `picture`, with classes in turn."""
    values = np.random.default_rng(seed).standard_normal((rows, *spec.shape)).astype(np.float32)
    return Dataset.from_arrays("toy", {"picture": values}, np.arange(rows) % classes, input_specs={"picture": spec})
