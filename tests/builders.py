"""What many tests begin with: a display, recipes on toy data, batches of given or drawn inputs, sets of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill import Batch, Dataset, InputSpec, Network, Recipe, Stage
from crossdistill.runtime.progress import Quiet
from crossdistill.testing import toy_dataset, toy_map_models, toy_models

SOUND = InputSpec(
    "log-mel",
    (1, 32, 32),
    {"sample_rate": 8000, "n_fft": 256, "hop": 200, "bands": 32, "top_db": 80.0, "samples": 6200, "level": 0.1}
    | {"normalisation": {"kind": "mean and standard deviation", "mean": -30.0, "deviation": 10.0}},
)
PICTURE = InputSpec(
    "image",
    (1, 8, 8),
    {"normalisation": {"kind": "mean and standard deviation", "mean": 0.3, "deviation": 0.2}},
    {"mean": torch.full((64,), 0.25), "basis": torch.eye(64)[:10]},
)


class Both(nn.Module):
    """The sum of a linear layer for each of two modalities of the toy data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(8, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.first(first) + self.second(second.flatten(1))


class Heard(Quiet):
    """Keeps what a run says and shows; ends the program, as Ctrl-C does, after so many steps."""

    def __init__(self, steps: int = 10**9) -> None:
        self.lines: list[str] = []
        self.statuses: list[str] = []
        self.notes: list[str] = []
        self.left = steps

    def say(self, text: str) -> None:
        self.lines.append(text)

    def status(self, text: str) -> None:
        self.statuses.append(text)

    def end(self, note: str = "") -> None:
        self.notes.append(note)

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


def reference_arrays(
    root: Path, image: tuple[int, ...] = (28, 28), audio: tuple[int, ...] = (112, 112), **other: np.ndarray
) -> dict[str, np.ndarray]:
    """Write av-mnist as the reference keeps it, 60 rows to train and 40 to test; `other` replaces arrays by name."""
    source, written = np.random.default_rng(0), {}
    for part, rows in (("train", 60), ("test", 40)):
        arrays = {
            f"image/{part}_data": source.random((rows, *image)) * 5,
            f"audio/{part}_data": source.integers(256, size=(rows, *audio)).astype(np.uint8),
            f"{part}_labels": np.arange(rows) % 10,
        }
        for name, array in arrays.items():
            path = root / "avmnist" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            written[name] = other.get(name, array)
            np.save(path, written[name])
    return written


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Its weights and buffers as they are now."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before: Mapping[str, Tensor], module: nn.Module) -> set[str]:
    """The names of those that are others now."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def pictures(spec: InputSpec, rows: int = 20, classes: int = 3, seed: int = 0) -> Dataset:
    """Normal numbers of this specification as the modality `picture`, with classes in turn."""
    values = np.random.default_rng(seed).standard_normal((rows, *spec.shape)).astype(np.float32)
    return Dataset.from_arrays("toy", {"picture": values}, np.arange(rows) % classes, input_specs={"picture": spec})
