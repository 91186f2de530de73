"""Networks and data of one's own on the command line: recipe files, their neighbours, packages with entry points."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from command_line import Command, process
from facts import raises

from crossdistill import load_student
from crossdistill.errors import SettingError
from crossdistill.recipes import make, recipe_file

RECIPE = '''
import torch
from torch import nn

from crossdistill import Dataset, Network, OptimizerConfig, Recipe, Stage
from crossdistill.data.config import DataConfig
from crossdistill.methods import KD, Supervised
from crossdistill.recipe import NetworkConfig
from crossdistill.testing import toy_dataset


class Mine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, first):
        return {"scores": self.layers(first)}


def own(width: int = 5, shift: float = 0.0, seed: int = 0) -> Recipe:
    data = toy_dataset(("first", "second"), rows=120)
    if shift:
        data = Dataset.from_arrays("toy", {n: t + shift for n, t in data.inputs.items()}, data.targets)
    student = Network(Mine(width), "first", output_adapter=lambda result: {"logits": result["scores"]})
    stages = [Stage(method=Supervised(), epochs=1)]
    return Recipe(data=data, student=student, student_name="mine", seed=seed, stages=stages)


def drawn() -> Recipe:
    """A network that each run draws."""
    data = toy_dataset(("first", "second"), rows=120)
    student = Network(factory=lambda: nn.Linear(6, 4), reads="first")
    return Recipe(data=data, student=student, student_name="mine", stages=[Stage(method=Supervised(), epochs=1)])


def own_student() -> Recipe:
    """Of the table are the data; the network is not."""
    student = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "image")
    return Recipe(data={"name": "av-digits"}, student=student, stages=[Stage(method=Supervised(), epochs=1)])


def own_teacher() -> Recipe:
    teacher = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "image")
    stages = [Stage(method=KD(), epochs=1)]
    student = NetworkConfig(model="small-image")
    return Recipe(data={"name": "av-digits"}, student=student, teachers={"flat": teacher}, stages=stages)
'''


@pytest.fixture(autouse=True)
def _paths() -> Iterator[None]:
    """Recipe files put their folders on Python's path, as `python FILE.py` does; here not for other tests."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "pytest-of" in str(sys.modules[name].__file__):
            del sys.modules[name]
    recipe_file._FOLDERS.clear()
    recipe_file._NAMES.clear()


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return path


def accuracy(out: Path) -> float:
    return float(json.loads((out / "results.json").read_text())[-1]["mean"])


def test_d_eval_says_the_command_that_names_the_function_and_it_works(
    recipes: Path, tmp_path: Path, crossdistill: Command
) -> None:
    out = tmp_path / "a run"
    assert crossdistill("run", f"{recipes}:own", "--set", "width=7", "--seed", "3", "--out", out).status == 0
    said = crossdistill("eval", out).complaint()
    assert "data, student" in said
    again = said[said.index("crossdistill eval") :]
    assert shlex.split(again)[1:] == [
        *("eval", str(out), "--recipe", f"{recipes}:own", "--set", "width=7", "--set", "seed=3")
    ]
    done = crossdistill(*shlex.split(again)[1:], "--json")
    assert (done.status, json.loads(done.out)["value"]) == (0, accuracy(out))


def test_d_predict_takes_the_function_too(recipes: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    crossdistill("run", f"{recipes}:own", "--out", out)
    np.save(tmp_path / "a.npy", np.zeros(6, np.float32))
    said = crossdistill("predict", out, tmp_path / "a.npy").complaint()
    assert "Mine" in said
    assert "--recipe FILE.py:FUNCTION" in said
    done = crossdistill("predict", out, tmp_path / "a.npy", "--recipe", f"{recipes}:own")
    assert (done.status, done.out.count("class ")) == (0, 1)
    student = load_student(out, module=make(f"{recipes}:own", []).student)
    assert student.predict(tmp_path / "a.npy")[0].label in done.out
    wrong = crossdistill("eval", out, "--recipe", f"{recipes}:own", "--set", "width=9").complaint()
    assert "(5, 6) instead of (9, 6)" in wrong


def test_d_a_network_that_is_drawn_is_evaluated_too(recipes: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    assert crossdistill("run", f"{recipes}:drawn", "--out", out).status == 0
    done = crossdistill("eval", out, "--recipe", f"{recipes}:drawn", "--json")
    assert (done.status, json.loads(done.out)["value"]) == (0, accuracy(out))


def test_d_other_data_than_the_runs_are_said(
    recipes: Path, tmp_path: Path, crossdistill: Command, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    crossdistill("run", f"{recipes}:own", "--out", out)
    assert crossdistill("eval", out, "--recipe", f"{recipes}:own").status == 0
    assert not caplog.records
    assert crossdistill("eval", out, "--recipe", f"{recipes}:own", "--set", "shift=3").status == 0
    assert str(out) in caplog.text


def test_d_data_of_the_table_stay_the_runs(digits: None, recipes: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    assert crossdistill("run", f"{recipes}:own_student", "--tiny", "--out", out).status == 0
    done = crossdistill("eval", out, "--recipe", f"{recipes}:own_student", "--json")
    assert (json.loads(done.out)["value"], json.loads(done.out)["rows"]) == (accuracy(out), 200)
    fewer = crossdistill("eval", out, "--recipe", f"{recipes}:own_student", "--set", "data.test_clips=100", "--json")
    assert fewer.status == 0
    assert json.loads(fewer.out)["rows"] == 100


def test_d_no_evaluation_needs_teachers(digits: None, recipes: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    assert crossdistill("run", f"{recipes}:own_teacher", "--tiny", "--out", out).status == 0
    assert json.loads(crossdistill("eval", out, "--json").out)["value"] == accuracy(out)


def test_d_a_function_that_a_folder_names_is_not_followed(recipes: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    crossdistill("run", f"{recipes}:own", "--out", out)
    evil = out / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef own():\n    raise SystemExit\n")
    text = (out / "recipe.yaml").read_text().replace(f"origin: {recipes}:own", f"origin: '{evil}:own ; rm -rf x'")
    assert "rm -rf" in text
    (out / "recipe.yaml").write_text(text)
    (out / "environment.json").unlink()
    np.save(tmp_path / "a.npy", np.zeros(6, np.float32))
    said = crossdistill("eval", out).complaint()
    assert "';' rm -rf x" in said, "what is copied from here is one command"
    crossdistill("predict", out, tmp_path / "a.npy").complaint()
    assert not (tmp_path / "ran").exists()


# Neighbours of a recipe file.

BESIDE = """
import helper

def recipe():
    from crossdistill.recipes import make
    import late
    import package.inner
    return make(f"av-digits/{helper.METHOD}", [f"seed={late.SEED}"]).model_copy(update={"name": package.inner.NAME})
"""


def project(folder: Path, method: str, seed: int, name: str) -> str:
    (folder / "package").mkdir(parents=True)
    (folder / "mine.py").write_text(BESIDE)
    (folder / "helper.py").write_text(f"METHOD = {method!r}\n")
    (folder / "late.py").write_text(f"SEED = {seed}\n")
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "inner.py").write_text(f"NAME = {name!r}\n")
    return f"{folder / 'mine.py'}:recipe"


def test_d_a_recipe_file_imports_its_neighbours_and_two_do_not_mix(tmp_path: Path) -> None:
    first, second = project(tmp_path / "a", "kd", 1, "one"), project(tmp_path / "b", "dkd", 2, "two")
    for _ in range(2):
        for source, wanted in ((first, ("kd", 1, "one")), (second, ("dkd", 2, "two"))):
            made = make(source, [])
            assert (made.stages[-1].method.name, made.seed, made.name) == wanted
    assert sum(entry in {str(tmp_path / "a"), str(tmp_path / "b")} for entry in sys.path) == 1


def test_d_an_environment_below_the_file_is_not_its_neighbour(tmp_path: Path) -> None:
    """Modules that other files imported stay what they are: torch is not read again."""
    first = project(tmp_path / "a", "kd", 1, "one")
    make(first, [])
    here = project(tmp_path / "b", "kd", 1, "one")
    (tmp_path / "b" / "json.py").write_text("raise SystemExit('shadowed')")
    before = dict(sys.modules)
    make(here, [])
    assert sys.modules["json"] is before["json"]
    assert sys.modules["torch"] is before["torch"]


def test_d_neighbours_as_a_process(digits: None, tmp_path: Path) -> None:
    source = project(tmp_path / "a", "supervised", 5, "one")
    said = process("run", source, "--tiny", "--out", tmp_path / "out", cwd=tmp_path)
    assert said.status == 0, said.err
    assert "one: student" in said.err


@pytest.mark.parametrize("line", ["import sys; sys.exit(3)", "raise SystemExit", "exit()"])
@pytest.mark.parametrize("inside", [False, True])
def test_d_a_recipe_file_that_ends_the_program_is_said(
    tmp_path: Path, line: str, inside: bool, crossdistill: Command
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def recipe():\n    {line}\n" if inside else f"{line}\ndef recipe(): pass\n")
    assert "SystemExit" in crossdistill("run", f"{path}:recipe").complaint()


# Packages with entry points.

PLUGIN = '''
from typing import Literal

import numpy as np
from torch import nn

from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.methods import KD
from crossdistill.models import Model


class PlugData(DataConfig):
    """Two kinds of noise."""

    name: Literal["plug-data"] = "plug-data"
    rows: int = 300

    def build(self, progress):
        rng = np.random.default_rng(self.seed)
        targets = rng.integers(3, size=self.rows)
        values = rng.standard_normal((self.rows, 6)) + np.eye(6)[targets] * 3
        return Dataset.from_arrays(self.name, {"noise": values}, targets, seed=self.seed)

    def cached(self):
        return None

    def tiny(self):
        return self.model_copy(update={"rows": 120})


class PlugKD(KD):
    """KD by another name."""

    name: Literal["plug-kd"] = "plug-kd"


class PlugNet(nn.Module):
    def __init__(self, classes: int = 10, width: int = 4):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, classes)

    def forward(self, noise):
        return self.last(self.first(noise).relu())


PLUG_NET = Model("plug_in:PlugNet", ("noise",), ("first",), "a small network")
BROKEN = 3
'''
ENTRY_POINTS = """
[crossdistill.data]
plug-data = plug_in:PlugData
broken-data = plug_in:BROKEN

[crossdistill.models]
plug-net = plug_in:PLUG_NET
broken-net = plug_in_that_is_not_there:NET

[crossdistill.methods]
plug-kd = plug_in:PlugKD
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip leaves it: its module, and its entry points beside it."""
    site = tmp_path / "site"
    about = site / "plug_in-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "plug_in.py").write_text(dedent(PLUGIN))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.mark.parametrize("what", ["data", "models", "methods"])
def test_d_list_knows_what_packages_offer(installed: Path, what: str, crossdistill: Command) -> None:
    said = crossdistill("list", what, "--json")
    assert said.status == 0, said.err
    names = [row["name"] for row in json.loads(said.out)]
    assert {"data": "plug-data", "models": "plug-net", "methods": "plug-kd"}[what] in names
    assert {"data": "av-digits", "models": "small-image", "methods": "kd"}[what] in names
    assert what == "methods" or "broken" in said.err
    assert not any("broken" in name for name in names)


def test_d_a_package_from_run_to_prediction(installed: Path, tmp_path: Path, crossdistill: Command) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "data: {name: plug-data}\nstudent: {model: plug-net, options: {width: 9}}\n"
        "stages: [{method: {name: supervised}, epochs: 2}]\n"
    )
    out = tmp_path / "out"
    said = crossdistill("run", tmp_path / "recipe.yaml", "--tiny", "--out", out)
    assert said.status == 0, said.err
    assert json.loads(crossdistill("eval", out, "--json").out)["value"] == accuracy(out)
    student = load_student(out)
    assert student.network.module.first.out_features == 9
    assert student.predict(np.zeros((2, 6), np.float32))[0].label in {"0", "1", "2"}


def test_d_a_broken_package_is_a_sentence(installed: Path) -> None:
    from crossdistill.data import find_data
    from crossdistill.models import find_model

    with raises(SettingError, "'broken-net'", "plug_in_that_is_not_there", "ModuleNotFoundError"):
        find_model("broken-net")
    with raises(SettingError, "'broken-data'", "DataConfig"):
        find_data("broken-data")
