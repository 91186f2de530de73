"""Toy data and toy networks: any number of modalities, learnable within seconds, the same numbers on every machine."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional

from crossdistill.batch import MISSING_TARGET
from crossdistill.data.dataset import Dataset
from crossdistill.data.split import random_split
from crossdistill.network import Network
from crossdistill.runtime.hashing import derived_seed

TOY_SHAPES: Mapping[str, tuple[int, ...]] = {"first": (6,), "second": (2, 4), "third": (5,)}
"""Default modalities of the toy data, and the shapes of their examples."""
TOY_TAPS = ("joint", "hidden", "embed")


def toy_dataset(
    modalities: Mapping[str, tuple[int, ...]] | Sequence[str] = ("first", "second"),
    rows: int = 240,
    classes: int = 4,
    *,
    noise: float = 1.0,
    labelled: float = 1.0,
    without_target: float = 0.0,
    absent: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Dataset:
    """Paired rows in which every modality depends on the class, by its own patterns and with its own noise.

    `modalities` are names with the shape of an example; names alone take their shapes from `TOY_SHAPES`. `noise` is
    the standard deviation of the noise; that of the patterns is 1 (dimensionless). A fraction `labelled` of all rows
    keeps its label for the student, a fraction `without_target` has no target at all, and `absent` is, by modality, the
    fraction of rows in which it is missing: its values there are NaN. 60 % of the rows train, 20 % validate, 20 % test.
    """
    shapes = modalities if isinstance(modalities, Mapping) else {name: TOY_SHAPES[name] for name in modalities}
    targets = np.random.default_rng(derived_seed("targets", seed)).permutation(np.arange(rows) % classes)
    inputs, present = {}, {}
    for name, shape in shapes.items():
        # A generator for each modality: data of two and of three modalities agree in those that they share.
        source = np.random.default_rng(derived_seed("toy", seed, name))
        patterns = source.standard_normal((classes, *shape))
        values = (patterns[targets] + noise * source.standard_normal((rows, *shape))).astype(np.float32)
        fraction = (absent or {}).get(name, 0.0)
        if fraction:
            present[name] = source.random(rows) >= fraction
            values[~present[name]] = np.nan
        inputs[name] = values
    chosen = np.random.default_rng(derived_seed("labels", seed))
    numbers = np.where(chosen.random(rows) < without_target, MISSING_TARGET, targets)
    return Dataset.from_arrays(
        "toy",
        inputs,
        numbers,
        # Not stratified: classes have equal numbers of rows by construction, and recorded traces depend on these rows.
        splits=random_split(rows, seed),
        classes=[f"class {number}" for number in range(classes)],
        present=present,
        labelled=None if labelled >= 1 else chosen.random(rows) < labelled,
        about="Patterns and noise, drawn from a seed.",
    )


class ToyModule(nn.Module):
    """Up to three inputs of any shape -> (logits (B, classes), embedding (B, width // 2)).

    Taps: joint (the inputs' features side by side), hidden (before its ReLU), embed. The embedding has its own layer,
    which the logits do not depend on. Without `normalised` there is neither BatchNorm nor dropout, so that a batch and
    its parts agree up to rounding.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], classes: int, width: int = 12, normalised: bool = False
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(torch.Size(shape).numel(), width) for shape in shapes)
        self.joint = nn.Identity()
        self.normalise = nn.BatchNorm1d(width * len(shapes)) if normalised else nn.Identity()
        self.hidden = nn.Linear(width * len(shapes), width)
        self.drop = nn.Dropout(0.2 if normalised else 0.0)
        self.embed = nn.Linear(width, width // 2)
        self.logits = nn.Linear(width, classes)

    def forward(
        self, first: Tensor | fx.Proxy, second: Tensor | fx.Proxy | None = None, third: Tensor | fx.Proxy | None = None
    ) -> tuple[Float[Tensor, "B C"] | fx.Proxy, Float[Tensor, "B D"] | fx.Proxy]:
        """Logits and embedding."""
        parts = []
        # One input per layer: the remaining inputs are None.
        for layer, value in zip(self.inputs, (first, second, third), strict=False):
            assert value is not None
            parts.append(functional.relu(layer(value.flatten(1))))
        joint = self.normalise(self.joint(torch.cat(parts, dim=1)))
        hidden = self.drop(functional.relu(self.hidden(joint)))
        return self.logits(hidden), self.embed(hidden)


def toy_network(
    reads: Sequence[str] = ("first",),
    *,
    shapes: Mapping[str, tuple[int, ...]] = TOY_SHAPES,
    classes: int = 4,
    width: int = 12,
    normalised: bool = False,
    seed: int = 0,
) -> Network:
    """A small network for toy data, initialised from its seed; `normalised` adds BatchNorm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("toy network", seed, *reads))
        module = ToyModule([shapes[name] for name in reads], classes, width, normalised)
    return Network(module, reads, TOY_TAPS)


def toy_models(dataset: Dataset, teachers: int = 2, *, normalised: bool = False, seed: int = 0) -> dict[str, Network]:
    """Networks by name: a student of the data's first modality, which comes first, and a number of teachers.

    The first teacher reads every modality, the next ones one modality each, starting with the last.
    """
    names = list(dataset.inputs)
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in dataset.inputs.items()}
    reads = [tuple(names), *((name,) for name in reversed(names))]
    reads += [*pairwise([*names, names[0]])]
    members = {"student-network": (names[0],), **{f"teacher-{i}": reads[i % len(reads)] for i in range(teachers)}}
    return {
        name: toy_network(
            each, shapes=shapes, classes=len(dataset.classes), normalised=normalised, seed=seed + 1 + number
        )
        for number, (name, each) in enumerate(members.items())
    }


class ToyMaps(nn.Module):
    """Up to three inputs (channels, H, W) of any size -> logits (B, classes), through maps.

    Taps: early (4 channels of 4 x 4 for each input, side by side), late (8, 2, 2), hidden (width,).
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], classes: int, width: int = 12) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv2d(shape[0], 4, 3, padding=1) for shape in shapes)
        self.early = nn.Identity()
        self.late = nn.Conv2d(4 * len(shapes), 8, 3, stride=2, padding=1)
        self.hidden = nn.Linear(8 * 2 * 2, width)
        self.logits = nn.Linear(width, classes)

    def forward(
        self, first: Tensor | fx.Proxy, second: Tensor | fx.Proxy | None = None, third: Tensor | fx.Proxy | None = None
    ) -> Float[Tensor, "B C"] | fx.Proxy:
        """Logits."""
        parts = []
        for layer, value in zip(self.inputs, (first, second, third), strict=False):
            assert value is not None
            parts.append(functional.adaptive_avg_pool2d(layer(value), (4, 4)))
        early = self.early(torch.cat(parts, dim=1))
        late = self.late(functional.relu(early))
        hidden = self.hidden(functional.relu(late).flatten(1))
        logits: Tensor = self.logits(functional.relu(hidden))
        return logits


TOY_MAPS: Mapping[str, tuple[int, ...]] = {"first": (1, 8, 8), "second": (2, 6, 6), "third": (1, 4, 8)}
"""Modalities of toy data for networks with maps, and the shapes of their examples."""
TOY_MAP_TAPS = ("early", "late", "hidden")


def toy_map_models(dataset: Dataset, teachers: int = 3, *, seed: int = 0) -> dict[str, Network]:
    """As `toy_models`, with convolutional networks, for data whose examples are maps (`TOY_MAPS`)."""
    names = list(dataset.inputs)
    reads = [(names[0],), tuple(names), *((name,) for name in reversed(names))]
    members: dict[str, Network] = {}
    for number, each in enumerate(reads[: teachers + 1]):
        name = f"teacher-{number - 1}" if number else "student-network"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("toy maps", seed, number))
            module = ToyMaps([tuple(dataset.inputs[n].shape[1:]) for n in each], len(dataset.classes), 12 + 2 * number)
        members[name] = Network(module, each, TOY_MAP_TAPS)
    return members
