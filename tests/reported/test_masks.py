"""Masks without named layers, and masks of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import raises
from torch import Tensor, nn

from crossdistill import Batch, Dataset, Network, NetworkConfig, Recipe, Stage, run
from crossdistill.errors import RecipeError, ShapeError, StoppedError
from crossdistill.methods.hidden_layers import hidden_layers
from crossdistill.methods.specialise import Specialise
from crossdistill.nets import apply_mask, low_rank_mask_for, mask_for
from crossdistill.planning.plan import prepare


def _network(module: nn.Module, *reads: str) -> Network:
    torch.manual_seed(0)
    return Network(module, reads=reads)


class Branches(nn.Module):
    """Two branches that meet; `fused` further layers before the classifier."""

    def __init__(self, fused: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 10), nn.Linear(8, 10)
        self.joined = nn.Identity()
        self.fused = nn.ModuleList(nn.Linear(20, 20) for _ in range(fused))
        self.head = nn.Linear(20, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        hidden = self.joined(torch.cat([self.left(left), self.right(right)], 1).relu())
        for layer in self.fused:
            hidden = layer(hidden).relu()
        return self.head(hidden)


class Tokens(nn.Module):
    """Tokens of 8 numbers, mixed twice, averaged and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens).relu()
        hidden = (hidden + self.mix(hidden)).relu()
        return self.head(hidden.mean(1))


CONVOLUTIONS = nn.Sequential(
    *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(16 * 4, 4)),
)


@pytest.mark.parametrize(
    ("network", "shapes", "layers"),
    [
        # As the paper has them (the first one's activation is a layer); of the last, whose penultimate layer is
        # flattened, the map.
        (NetworkConfig(model="lenet5"), ((1, 28, 28),), ("conv3", "fc1_relu")),
        (NetworkConfig(model="cnn-i"), ((1, 28, 28), (1, 112, 112)), ("concat_identity", "fc1")),
        (NetworkConfig(model="three-layer-cnn-a"), ((1, 112, 112),), ("conv2", "conv3_maxpool")),
        (CONVOLUTIONS, ((1, 8, 8),), ("1", "6")),
        (nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), ((9,),), ("0", "3")),
        (nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)), ((9,),), ("1",)),
        # Five units are too few for a mask of three heads.
        (nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), ((9,),), ("3",)),
        (nn.Linear(9, 4), ((9,),), ()),
        (Branches(0), ((6,), (8,)), ("joined",)),
        (Branches(1), ((6,), (8,)), ("joined", "fused.0")),
        (Branches(2), ((6,), (8,)), ("fused.0", "fused.1")),
        (Tokens(), ((5, 8),), ("embed", "mix")),
    ],
)
def test_d_the_layers_that_are_masked_are_chosen(
    network: nn.Module | NetworkConfig, shapes: tuple[tuple[int, ...], ...], layers: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    names = [f"m{number}" for number in range(len(shapes))]
    if isinstance(network, NetworkConfig):
        made = network.build(10)
        names = list(made.reads)
    else:
        made = _network(network, *names)
    batch = Batch({name: torch.randn(2, *shape) for name, shape in zip(names, shapes, strict=True)}, torch.arange(2))
    modes = [module.training for module in made.modules()]
    assert hidden_layers(made, batch, Specialise()._fits) == layers
    assert [module.training for module in made.modules()] == modes
    assert not any(module._forward_hooks for module in made.modules())


def own_data() -> Dataset:
    draw = np.random.default_rng(0)
    shapes = {"left": (120, 6), "right": (120, 8), "tokens": (120, 5, 8)}
    inputs = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    return Dataset.from_arrays("mine", inputs, draw.integers(4, size=120))


def own_recipe(data: Dataset) -> Recipe:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    teachers = {
        "both": _network(Branches(1), "left", "right"),
        "tokens": Network(Tokens(), reads="tokens", taps=("mix",)),
    }
    stages = (
        Stage(method="collaborate", trains=("student", "both", "tokens"), epochs=1, batch_size=36, select="last"),
        Stage(method="specialise", trains=(), epochs=2, batch_size=36),
        Stage(method="route", epochs=2, batch_size=36),
    )
    return Recipe(data=data, student=_network(student, "left"), teachers=teachers, stages=stages, device="cpu")


CHOSEN = {"both": ("joined", "fused.0"), "tokens": ("embed", "mix")}


def test_d_chosen_layers_are_in_the_plan_and_a_teachers_taps_stay() -> None:
    data = own_data()
    made = own_recipe(data)
    plan = prepare(made, data, torch.device("cpu"))
    assert plan.jobs[1].stage.method.model_dump()["taps"] == CHOSEN
    assert set(plan.jobs[2].teachers) == {f"{name}@{tap}" for name, taps in CHOSEN.items() for tap in taps}
    assert plan.members["tokens"].taps == ("mix",), "what other methods choose from is what it was"
    assert prepare(made, data, torch.device("cpu")).jobs[1].key == plan.jobs[1].key


def test_d_chosen_layers_are_said_and_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    heard = Heard()
    data, whole, parts = own_data(), tmp_path / "whole", tmp_path / "parts"
    run(own_recipe(data), whole, display=heard)
    (line,) = (text for text in heard.lines if text.startswith("specialise: chosen"))
    assert all(layer in line for layers in CHOSEN.values() for layer in layers)
    steps = iter(range(1000))
    with pytest.raises(StoppedError):
        run(own_recipe(data), parts, stop=lambda: next(steps) == 4)
    run(own_recipe(data), parts, resume=True)
    for file in ("metrics.jsonl", "student/model.safetensors"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


def test_d_a_teacher_without_a_hidden_layer_is_named() -> None:
    data = own_data()
    teachers = {"flat": _network(nn.Linear(8, 4), "right")}
    made = own_recipe(data).model_copy(update={"teachers": teachers})
    stages = (Stage(method="specialise", trains=(), epochs=1),)
    with raises(RecipeError, "flat"):
        prepare(made.model_copy(update={"stages": stages}), data, torch.device("cpu"))


@pytest.mark.parametrize("masknet", ["full", "low_rank"])
def test_d_tokens_have_masks(masknet: str) -> None:
    torch.manual_seed(0)
    made: Any = (mask_for if masknet == "full" else low_rank_mask_for)((5, 12))
    made = made.double()
    value = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    mask = made(value)
    assert mask.shape == (3, 12)
    assert bool(((mask > 0) & (mask < 1)).all())
    # The reference's order of work, behind the reduction: embed, attention over the units, one number for each.
    reduced = (made.token_reduce.project[:2](value)).relu().mean(1)
    tokens = made.embed(reduced).view(3, 12, -1)
    attended, _ = made.mha(tokens, tokens, tokens)
    torch.testing.assert_close(mask, made.fc(attended).squeeze(2).sigmoid())
    torch.testing.assert_close(apply_mask(value, mask)[:, 2], value[:, 2] * mask)
    # A row's mask depends on no other row, and not on the order of its tokens.
    torch.testing.assert_close(made(value[1:2]), mask[1:2])
    torch.testing.assert_close(made(value.flip(1)), mask)
    assert made(torch.randn(2, 9, 12, dtype=torch.float64)).shape == (2, 12), "sequences of another length"
    mask.sum().backward()
    assert all(own.grad is not None for own in made.parameters())
    with pytest.raises(ShapeError):
        made(torch.randn(3, 12, 5, dtype=torch.float64))
