"""The rivals as they are published: where they read features, what they train, and what they cannot distil."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossdistill import Network, OptimizerConfig, Recipe, Stage, load_student, run
from crossdistill.data.av_digits import AvDigitsConfig
from crossdistill.methods import METHODS
from crossdistill.methods.hint import Hint
from crossdistill.models import build_network
from crossdistill.outputs import OutputSpec, Want
from crossdistill.recipes import make
from crossdistill.taps import chosen
from crossdistill.testing import toy_dataset

AFTER = ("at", "nst", "sp", "vid", "kdsvd", "rkd", "crd", "pkt", "ofa")
BEFORE = ("ofd", "reviewkd")


@pytest.mark.parametrize("name", [*AFTER, *BEFORE])
@pytest.mark.parametrize("data", ["av-mnist", "av-digits"])
@pytest.mark.parametrize("student", ["image", "audio"])
def test_b6_a_recipe_reads_where_the_method_is_published(name: str, data: str, student: str) -> None:
    method = make(f"{data}/{name}", [f"student={student}", "teachers=mm+cm"], 0).stages[-1].method.model_dump()
    networks = {"image": "lenet5", "audio": "three-layer-cnn-a", "mm": "cnn-i"}
    small = {"image": "small-image", "audio": "small-audio", "mm": "small-mm"}
    for who, taps in {student: method["taps"], **method.get("teacher_taps", {})}.items():
        network = build_network((networks if data == "av-mnist" else small)[who])
        layers = {tap: network.module.get_submodule(tap) for tap in taps}
        # CNN-I has no activation behind its fc1.
        free = {("av-mnist", "mm", "fc1")}
        for tap, layer in layers.items():
            raw = isinstance(layer, nn.Conv2d | nn.Linear)
            assert raw == (name in BEFORE or (data, who, tap) in free), f"{name} reads {who} at {tap}"


@pytest.mark.parametrize("name", ["rkd", "crd", "pkt"])
def test_b6_the_audio_networks_penultimate_layer_is_the_flattened_one(name: str) -> None:
    method = make(f"av-mnist/{name}", ["student=audio", "teachers=cm"], 0).stages[-1].method.model_dump()
    assert method["taps"] == ("conv3_maxpool_flatten",)
    assert method["teacher_taps"] == {"image": ("fc1_relu",)}


class Layers(nn.Module):
    """Two layers whose activations are modules of their own, and one that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_act = nn.Conv2d(1, 3, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)
        self.b, self.b_act = nn.Conv2d(3, 5, 3, padding=1), nn.GELU()
        self.c = nn.Conv2d(5, 5, 3, padding=1)
        self.end = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.end(self.c(self.b_act(self.b(self.a_act(self.a(x))))).mean((2, 3)))
        return found


def test_b6_own_networks_are_read_before_or_after_their_activation() -> None:
    network = Network(Layers(), "first", taps=("a", "a_act", "b", "b_act", "c", "end"))
    spec = network.probe(toy_dataset({"first": (1, 6, 6)}).example())
    assert spec.activated == {"a": "a_act", "b": "b_act"}
    assert [want.tap for want in chosen("maps", spec, METHODS["at"].activation)] == ["a_act", "b_act", "c"]
    assert [want.tap for want in chosen("maps", spec, METHODS["ofd"].activation)] == ["a", "b", "c"]


def test_b6_methods_choose_by_themselves_what_they_want() -> None:
    spec = OutputSpec((4,), None, {"a": (3, 6, 6), "a_act": (3, 6, 6)}, {"a": "a_act"})
    assert Want.feature("a_act") in chosen("maps", spec)
    assert Want.feature("a") in chosen("maps", spec, "before")


class Branches(nn.Module):
    """Two branches, one of them hinted, and what lies behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.hinted = nn.Linear(6, 5), nn.Linear(5, 5)
        self.beside = nn.Linear(6, 5)
        self.above, self.end = nn.Linear(10, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.hinted(self.below(x).relu()), self.beside(x)
        found: Tensor = self.end(self.above(torch.cat([one, other], 1)).relu())
        return found


@pytest.mark.parametrize("optimizer", [OptimizerConfig(weight_decay=0.1), OptimizerConfig(name="sgd")])
def test_b7_hints_train_all_that_the_hinted_layer_depends_on_and_nothing_else(
    optimizer: OptimizerConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    student, teacher = (Network(Branches(), "first", taps=("hinted",)) for _ in range(2))
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    recipe = Recipe(
        name="hints",
        data=AvDigitsConfig(),
        student=student,
        teachers={"t": teacher},
        stages=(Stage(method=Hint(), epochs=1, optimizer=optimizer),),
    )
    run(recipe, tmp_path / "out", dataset=toy_dataset(("first",)))
    module = load_student(tmp_path / "out" / "student", module=Branches()).network.module
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"below.weight", "below.bias", "hinted.weight", "hinted.bias"}


def test_b7_fitnets_trains_below_the_hinted_layers() -> None:
    hint = next(stage for stage in make("av-digits/fitnets", [], 0).stages if stage.method.name == "hint")
    assert hint.trained == ("student",)
