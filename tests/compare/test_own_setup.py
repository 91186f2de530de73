"""Comparisons on a program's own data and networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

import crossdistill
from crossdistill import Dataset, ExperimentSetup, Network, NetworkConfig
from crossdistill.compare import Grid
from crossdistill.errors import RecipeError, ResumeError, SettingError
from crossdistill.recipes import make
from crossdistill.recipes.setup import Length
from crossdistill.recipes.stages import recipe
from tests.facts import raises

SHORT = Length(epochs=1, learning_rate=3e-3)
FILE = """
from tests.compare.test_own_setup import sensors as setup

def number():
    return 3

def broken():
    raise ZeroDivisionError("no such luck")
"""


def rows(*modalities: str, number: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, number)
    inputs = {name: rng.normal(size=(3, 5))[targets] + rng.normal(size=(number, 5)) for name in modalities}
    return Dataset.from_arrays("sensors", inputs, targets)


def perceptron(modality: str, width: int = 8) -> NetworkConfig:
    return NetworkConfig(model="mlp", reads=(modality,), options={"features": 5, "width": width})


def sensors() -> ExperimentSetup:
    encoders = {name: {"model": "mlp", "options": {"features": 5, "width": 8}} for name in ("left", "right", "top")}
    return ExperimentSetup(
        data=rows("left", "right", "top"),
        networks={name: perceptron(name) for name in encoders},
        multimodal=NetworkConfig(model="fusion", reads=tuple(encoders), options={"encoders": encoders, "width": 8}),
        supervised=SHORT,
        collaborate=SHORT,
        specialise=SHORT,
        distil=SHORT,
    )


def one_modality(**settings: object) -> ExperimentSetup:
    lengths = dict.fromkeys(("supervised", "collaborate", "specialise", "distil"), SHORT)
    values = {"data": rows("left"), "networks": {"left": perceptron("left")}, **lengths, **settings}
    return ExperimentSetup.model_validate(values)


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


def test_a_setup_of_three_modalities_is_compared_in_this_process(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    comparison = crossdistill.compare(
        sensors(), ["supervised", "kd", "mst-distill"], seeds=2, students=["left"], out=tmp_path / "out"
    )
    assert {line.title for line in comparison.table.lines} >= {"supervised", "kd (mm)", "mst-distill (mm+cm)"}
    assert comparison.best.keys() == {("left", 1.0)}
    assert {pair.setting.method for pair in comparison.pairs} == {"kd", "mst-distill"}
    assert not comparison.findings.failed
    assert torch.get_num_threads() == threads


def test_cross_modal_teachers_are_all_other_modalities() -> None:
    setup = sensors()
    assert list(setup.teachers("right", "cm")) == ["left", "top"]
    assert list(setup.teachers("right", "mm+cm")) == ["mm", "left", "top"]


def test_a_recipe_of_an_own_setup_has_the_settings_of_a_command_line(own_file: str) -> None:
    recipe = make(f"{own_file}:setup/mst-distill", ["student=top", "labelled=0.2", "batch_size=8"][:2], seed=4)
    assert (recipe.learner, recipe.seed, recipe.kind) == ("top", 4, "mm+cm")
    assert isinstance(recipe.data, Dataset)
    assert recipe.data.labelled is not None
    train = recipe.data.splits["train"]
    assert float(recipe.data.labelled[train].double().mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("name", "settings", "facts"),
    [
        ("mine.py:setup/kdd", [], ("kdd", "kd")),
        ("mine.py:setup/kd", ["student=lefft"], ("lefft", "left")),
        ("mine.py:setup/kd", ["teachers=named"], ("named", "mm, cm, mm+cm")),
        ("mine.py:number/kd", [], ("int", "ExperimentSetup")),
        ("mine.py:broken/kd", [], ("ZeroDivisionError", "no such luck")),
        ("mine.py:sett/kd", [], ("sett", "setup")),
    ],
)
def test_a_wrong_name_is_refused(own_file: str, name: str, settings: list[str], facts: tuple[str, ...]) -> None:
    with raises(SettingError, *facts):
        make(name, settings)


def test_one_modality_has_the_teachers_that_its_setup_names(tmp_path: Path) -> None:
    large = Network(
        factory=lambda: torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)),
        reads=["left"],
        taps=["1"],
    )
    setup = one_modality(named_teachers={"large": large, "other": perceptron("left", 32)})
    comparison = crossdistill.compare(setup, ["supervised", "kd", "average-kd"], seeds=1, out=tmp_path / "out")
    assert {line.teachers for line in comparison.table.lines if line.kind == "method"} == {None, "named"}
    assert not comparison.findings.failed


def test_a_setup_without_teachers_says_how_to_name_one() -> None:
    with raises(SettingError, "named_teachers"):
        one_modality().kind(None, "mm", ("cm",))


def test_frozen_teachers_keep_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = torch.nn.Linear(5, 3)
    setup = one_modality(
        named_teachers={"given": Network(teacher, reads=["left"])}, frozen_teachers=frozenset({"given"})
    )
    crossdistill.compare(setup, ["kd", "dml"], seeds=1, out=tmp_path / "out")
    cells = tmp_path / "out" / "cells"
    assert not list(cells.glob("*/stages/*supervised-given*"))
    assert list(cells.glob("kd-*/stages/*kd*"))


def test_names_of_teachers_are_unique() -> None:
    with raises(ValueError, "left"):
        one_modality(named_teachers={"left": perceptron("left")})
    with raises(ValueError, "frozen_teachers", "larg"):
        one_modality(frozen_teachers=frozenset({"larg"}))


def test_a_method_whose_layers_nothing_names_says_so() -> None:
    setup = one_modality(networks={"left": Network(factory=lambda: torch.nn.Linear(5, 3), reads=["left"])})
    with raises(SettingError, "left", "taps"):
        setup.layers("left")


def test_values_that_do_not_fit_are_collected(tmp_path: Path) -> None:
    with raises(RecipeError, "kdd", "rright", "1.5"):
        crossdistill.compare(sensors(), ["kdd"], students=["rright"], labelled=[1.5], out=tmp_path / "out")
    assert not (tmp_path / "out" / "grid.json").exists()


def test_a_comparison_of_other_data_or_lengths_is_not_continued(tmp_path: Path) -> None:
    setup = one_modality(named_teachers={"large": perceptron("left", 32)})
    crossdistill.compare(setup, ["supervised"], seeds=1, out=tmp_path / "out")
    crossdistill.compare(setup, ["supervised"], seeds=1, out=tmp_path / "out", resume=True)
    longer = setup.with_epochs(2)
    with raises(ResumeError, "content"):
        crossdistill.compare(longer, ["supervised"], seeds=2, out=tmp_path / "out", resume=True)


@pytest.mark.parametrize("text", ["labelled=0.5", "seed=7", "student=right", "teachers=mm", "control=shuffled"])
def test_what_cells_vary_is_no_setting(own_file: str, text: str) -> None:
    with raises(RecipeError, text, "--"):
        Grid.parse(f"{own_file}:setup", settings=(text,))


def test_a_network_of_another_library_has_no_layers_of_the_table() -> None:
    setup = one_modality(named_teachers={"ViT_b": NetworkConfig(model="transformers:somewhere", reads=("left",))})
    assert setup.spatial("ViT_b", "left", "before") is None
    with raises(SettingError, "ViT_b", "taps"):
        setup.layers("ViT_b")
    assert recipe(setup, "kd", student="left", teachers=None, seed=0, control=None).stages[0].name == "supervised-vit-b"
