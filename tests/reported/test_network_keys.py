"""Keys of networks, methods and data from the running program say all of their code, or the stage is not shared."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill import Network, OwnAugmentation, Recipe, Stage
from crossdistill.planning.plan import prepare
from crossdistill.runtime.code_key import code_key
from crossdistill.testing import toy_dataset

DATASET = toy_dataset(("first",), rows=60)

HELPER = """
SCALE = 2.0

def scaled(x):
    return x * SCALE

def unused():
    return 1
"""

PROGRAM = """
import functools
import torch
import {helper} as helper
from torch import nn
from torch.nn import functional as F

GAIN = 1.0
NAMES = {{"b", "a", "c"}}

def bend(x, power=2):
    return x ** power if "a" in {{"a", "b"}} else x

def make(shift):
    return lambda x: x + shift

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()
        self.scale = 1.0
        self.sizes = [1, 2]
        self.table = {{"a": torch.arange(3)}}
        self.activate = F.relu
        self.shift = make(1.0)
        self.power = functools.partial(bend, power=2)

    @torch.no_grad()
    def tail(self, x):
        return x

    def forward(self, x):
        return self.power(self.shift(self.activate(helper.scaled(self.layer(x) * self.scale * GAIN)))) - self.sizes[0]

    @property
    def size(self):
        return 3

    @staticmethod
    def double(x):
        return 2 * x

def call(batch):
    return (helper.scaled(batch.inputs["first"]),), {{}}
"""


def _module(path: Path, name: str, text: str) -> ModuleType:
    (path / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, path / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Programs:
    """The same program again and again, with something else in it each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def __call__(self, program: tuple[str, str] = ("", ""), helper: tuple[str, str] = ("", "")) -> ModuleType:
        assert program[0] in PROGRAM
        assert helper[0] in HELPER
        number = len(self.names)
        self.names += [f"helper_{number}", f"program_{number}"]
        _module(self.folder, self.names[-2], HELPER.replace(*helper) if helper[0] else HELPER)
        text = PROGRAM.replace(*program) if program[0] else PROGRAM
        return _module(self.folder, self.names[-1], text.format(helper=self.names[-2]))


@pytest.fixture
def programs(tmp_path: Path) -> Any:
    found = _Programs(tmp_path)
    yield found
    for name in found.names:
        del sys.modules[name]


def _network(program: ModuleType) -> Network:
    torch.manual_seed(0)
    return Network(program.Net(), "first", taps=("layer",), input_adapter=program.call)


def _key(network: Network) -> str:
    recipe = Recipe(data=DATASET, student=network, stages=(Stage(method="supervised", epochs=1),))
    (job,) = prepare(recipe, DATASET, torch.device("cpu")).jobs
    assert not job.unkeyed
    return job.key


CHANGED: dict[str, Mapping[str, tuple[str, str]]] = {
    "forward": {"program": ("- self.sizes[0]", "- self.sizes[1]")},
    "a constant in forward": {"program": ("* GAIN", "* GAIN * 3.0")},
    "the forward of a layer": {"program": ("return self.linear(x)", "return -self.linear(x)")},
    "a plain attribute": {"program": ("self.scale = 1.0", "self.scale = 1.5")},
    "a list": {"program": ("[1, 2]", "[2, 1]")},
    "a tensor that is neither parameter nor buffer": {"program": ("torch.arange(3)", "torch.arange(1, 4)")},
    "a function held as an attribute": {"program": ("F.relu", "F.gelu")},
    "what a closure holds": {"program": ("make(1.0)", "make(2.0)")},
    "an argument of a partial": {"program": ("(bend, power=2)", "(bend, power=3)")},
    "what a partial calls": {"program": ("x ** power if", "-x ** power if")},
    "a default": {"program": ("power=2):", "power=4):")},
    "a global": {"program": ("GAIN = 1.0", "GAIN = 2.0")},
    "a global of a helper": {"helper": ("SCALE = 2.0", "SCALE = 3.0")},
    "a helper's function": {"helper": ("x * SCALE", "x / SCALE")},
    "call": {"program": ('batch.inputs["first"]', '-batch.inputs["first"]')},
    "a decorated method": {"program": ("        return x\n\n    def forward", "        return -x\n\n    def forward")},
    "a property": {"program": ("return 3", "return 4")},
    "a static method": {"program": ("return 2 * x", "return 3 * x")},
}


UNCHANGED: dict[str, Mapping[str, tuple[str, str]]] = {
    "nothing": {},
    "a comment, and lines that move": {"program": ("GAIN = 1.0", "# loud\n\n\nGAIN = 1.0")},
    "a function that nobody calls": {"helper": ("return 1", "return 2")},
    "another global": {"program": ("NAMES = {{", "OTHER = 1\nNAMES = {{0, ")},
    "the order of globals": {
        "program": ('GAIN = 1.0\nNAMES = {{"b", "a", "c"}}', 'NAMES = {{"b", "a", "c"}}\nGAIN = 1.0')
    },
}


@pytest.mark.parametrize("what", [*CHANGED, *UNCHANGED])
def test_a2_other_code_has_another_key_and_unrelated_changes_leave_it(programs: _Programs, what: str) -> None:
    other = programs(**(CHANGED | UNCHANGED)[what])
    assert (_key(_network(programs())) != _key(_network(other))) == (what in CHANGED)


def _patched_class(program: ModuleType, network: Network) -> None:
    program.Net.forward = lambda self, x: self.layer(x)


def _patched_object(program: ModuleType, network: Network) -> None:
    network.module.forward = lambda x: network.module.layer(x)


def _hooked(program: ModuleType, network: Network) -> None:
    network.module.layer.register_forward_hook(lambda module, args, result: 2 * result)


def _unregistered(program: ModuleType, network: Network) -> None:
    network.module.hidden = [nn.Linear(2, 2)]


PATCHES: tuple[Callable[[ModuleType, Network], None], ...] = (_patched_class, _patched_object, _hooked, _unregistered)


@pytest.mark.parametrize("patch", PATCHES)
def test_a2_a_patched_network_has_another_key(programs: _Programs, patch: Callable[..., None]) -> None:
    program = programs()
    network = _network(program)
    before = _key(network)
    patch(program, network)
    assert _key(network) != before


def test_a2_a_library_class_that_the_program_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(nn.Linear(6, 4))
    before = code_key(layer=layer).text()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert code_key(layer=layer).text() != before


def test_a2_attributes_of_torchs_own_layers_are_in_the_key() -> None:
    """The number of heads is in no weight and in no representation."""
    two, four = (code_key(m=nn.MultiheadAttention(4, heads)) for heads in (2, 4))
    assert two.text() != four.text()
    apart = [code_key(m=nn.Sequential(nn.Linear(2, 2), nn.Tanh() if bent else nn.Identity())) for bent in (True, False)]
    assert apart[0].text() != apart[1].text()


LAYERS = (
    lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True),
    lambda: nn.LSTM(3, 4, 2),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.GELU())),
    lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.1)),
)


@pytest.mark.parametrize("make", LAYERS)
def test_a2_torchs_own_layers_can_be_keyed(make: Callable[[], nn.Module]) -> None:
    one, two = code_key(m=make()), code_key(m=make())
    assert not one.faults
    assert one.text() == two.text()


def test_a2_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "program.py").write_text(PROGRAM.format(helper="helper"))
    (tmp_path / "main.py").write_text(
        textwrap.dedent(
            """
            import torch, program
            from crossdistill.runtime.code_key import code_key
            torch.manual_seed(0)
            key = code_key(module=program.Net(), call=program.call, names=program.NAMES)
            print(key.text(), len(key.faults))
            """
        )
    )
    found = [
        subprocess.run(
            [sys.executable, "main.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert found[0].endswith(" 0\n")


def test_a2_things_that_are_made_of_each_other() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n > 0 and even(n - 1)

    assert code_key(f=even).text() == code_key(f=even).text()
    assert code_key(f=even).text() != code_key(f=odd).text()
    ring: list[Any] = [1]
    ring.append(ring)
    assert code_key(f=ring).text()
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested" in next(iter(code_key(f=deep).faults.values()))


METHOD = """
from typing import Literal
from crossdistill.methods.kd import KD

class Mine(KD):
    name: Literal["mine"] = "mine"
    strength: float = 1.0

    def build(self, student, teachers, data):
        return helper(super().build(student, teachers, data))

def helper(method):
    return method
"""


def test_a2_methods_of_ones_own_are_in_the_key(tmp_path: Path) -> None:
    def key(name: str, text: str) -> str:
        method = _module(tmp_path, name, text).Mine()
        del sys.modules[name]
        torch.manual_seed(0)
        networks = [Network(nn.Linear(6, 4), "first") for _ in range(2)]
        recipe = Recipe(
            data=DATASET, student=networks[0], teachers={"t": networks[1]}, stages=(Stage(method=method, epochs=1),)
        )
        (job,) = prepare(recipe, DATASET, torch.device("cpu")).jobs
        assert not job.unkeyed
        return job.key

    base = key("mine_a", METHOD)
    assert key("mine_b", METHOD) == base
    assert key("mine_c", METHOD.replace("return method", "method.training = True\n    return method")) != base
    assert key("mine_d", METHOD.replace("strength: float = 1.0", "strength: float = 2.0")) != base


class Louder:
    def __init__(self, by: float) -> None:
        self.by = by

    def change(self, inputs: Mapping[str, Tensor], ids: Tensor, view: Tensor) -> Mapping[str, Tensor]:
        return {name: value * self.by for name, value in inputs.items()}


def test_a2_views_of_ones_own_have_a_key_of_the_same_kind() -> None:
    two, three = (OwnAugmentation(Louder(by).change, views=1) for by in (2.0, 3.0))
    assert two.key == OwnAugmentation(Louder(2.0).change, views=1).key
    assert two.key != three.key
    source = torch.Generator()
    assert OwnAugmentation(lambda inputs, ids, view: {"x": torch.rand(2, generator=source)}, views=1).key is None


def test_a2_keys_of_the_table_of_models_stay(tmp_path: Path) -> None:
    """Nothing of the user's own: no code is in the key, and shared stages of before are found again."""
    from crossdistill.recipe import NetworkConfig

    network = NetworkConfig(model="small-image").build(10)
    assert not network.has_own_code()
    assert not network.unkeyed()
    assert json.dumps(network.wiring())


def test_a2_the_order_of_layers_is_in_the_key() -> None:
    """Layers that have equal names and weights run in the order in which they were added."""
    parts = {"bend": nn.Tanh(), "norm": nn.LayerNorm(4)}
    orders = (("bend", "norm"), ("norm", "bend"))
    for kind in (lambda named: nn.Sequential(OrderedDict(named)), nn.ModuleDict):
        one, other = (code_key(m=kind({name: parts[name] for name in names})).text() for names in orders)
        assert one != other


@pytest.mark.parametrize(
    ("owner", "name", "new"),
    [
        (functional, "relu", lambda x, inplace=False: 3 * x),
        (functional, "relu", functional.gelu),
        (Tensor, "relu", lambda x: 3 * x),
        (nn.Module, "__call__", lambda self, *given: self.forward(*given)),
        (nn.modules.conv._ConvNd, "extra_repr", lambda self: ""),
    ],
)
def test_a2_functions_that_the_program_puts_in_the_place_of_torchs(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, new: Any
) -> None:
    """A layer of torch reads them, and its own code is not followed."""
    layer = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU())
    before = code_key(layer=layer).text()
    monkeypatch.setattr(owner, name, new)
    assert code_key(layer=layer).text() != before
    monkeypatch.undo()
    assert code_key(layer=layer).text() == before


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # by PyTorch on Python 3.13.0
def test_a2_what_torch_wraps_of_its_own_is_in_no_key() -> None:
    """Its compiler does, in the first program that uses it."""
    before = code_key(layer=nn.ReLU()).text()
    torch.compile(nn.ReLU(), backend="eager")(torch.ones(2))
    assert code_key(layer=nn.ReLU()).text() == before
