"""What a run trains is a copy of a module of the program: frozen weights stay, functions run on the copy's layers."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import Heard
from facts import raises
from safetensors.torch import load_file
from torch import Tensor, nn

from crossdistill import Network, Recipe, Stage, run
from crossdistill.errors import RecipeError, SettingError
from crossdistill.planning.plan import prepare
from crossdistill.testing import toy_dataset

ONE = toy_dataset(("first",), rows=60)
TWO = toy_dataset(("first", "second"), rows=60)
CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(back=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 4)))


def recipe(student: Network, **teachers: Network) -> Recipe:
    stage = Stage(method="kd" if teachers else "supervised", epochs=1, batch_size=12)
    return Recipe(data=TWO if teachers else ONE, student=student, teachers=teachers, stages=(stage,))


def trained(out: Path) -> dict[str, Tensor]:
    return load_file(out / "student" / "model.safetensors")


def key(network: Network) -> str:
    (job,) = prepare(recipe(network), ONE, CPU).jobs
    return job.key


def test_a3_weights_that_came_frozen_do_not_train(tmp_path: Path) -> None:
    module = net()
    module.back.requires_grad_(False)
    says = Heard()
    run(recipe(Network(module, "first")), tmp_path / "run", display=says)
    found = trained(tmp_path / "run")
    assert torch.equal(found["back.weight"], module.back.weight)
    assert not torch.equal(found["head.weight"], module.head.weight)
    assert any("2 of its 4" in line and "back.weight" in line for line in says.lines)


def test_a2_frozen_weights_are_in_the_key() -> None:
    module = net()
    before = key(Network(module, "first"))
    module.back.requires_grad_(False)
    assert key(Network(module, "first")) != before


def test_a3_a_network_of_which_nothing_may_train_is_refused(tmp_path: Path) -> None:
    module = net().requires_grad_(False)
    with raises(RecipeError, "requires_grad"):
        run(recipe(Network(module, "first")), tmp_path / "run")


def test_a3_a_program_finds_its_modules_as_they_were(tmp_path: Path) -> None:
    """A teacher that teaches and does not train is no copy, and may train in the next run."""
    teacher, student = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), net()
    teacher[1].bias.requires_grad_(False)
    run(recipe(Network(student, "first"), t=Network(teacher, "second")), tmp_path / "run")
    assert [one.requires_grad for one in teacher.parameters()] == [True, False]
    assert all(one.requires_grad for one in student.parameters())
    assert teacher.training
    assert student.training


def _hooked() -> nn.Module:
    """The usual way to get at features: a hook that writes into the module around it."""

    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.net.back.register_forward_hook(lambda _m, _a, result: self.seen.append(result))
            self.seen: list[Tensor] = []

        def forward(self, first: Tensor) -> Tensor:
            self.seen.clear()
            self.net(first)
            return self.net.head(self.seen[0].relu())

    return Hooked()


def _replaced_forward() -> nn.Module:
    module = net()
    module.forward = lambda first: module.head(module.act(module.back(first)))
    return module


@pytest.mark.parametrize("make", [_hooked, _replaced_forward])
def test_a3_functions_that_hold_the_module_run_on_its_copy(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    module = make()
    run(recipe(Network(module, "first")), tmp_path / "run")
    run(recipe(Network(net(), "first")), tmp_path / "plain")
    plain = trained(tmp_path / "plain")
    found = {name.removeprefix("net."): value for name, value in trained(tmp_path / "run").items()}
    assert {name: torch.equal(found[name], plain[name]) for name in plain} == dict.fromkeys(plain, True)


def test_a3_call_and_give_that_hold_the_module_run_on_its_copy(tmp_path: Path) -> None:
    """Here one layer runs in `call`, and nothing else of the module does."""
    module = nn.Linear(6, 4)

    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, logits: Tensor) -> Tensor:
            return logits

    run(
        recipe(Network(Passes(), "first", input_adapter=lambda batch: ((module(batch.inputs["first"]),), {}))),
        tmp_path / "run",
    )
    assert not torch.equal(trained(tmp_path / "run")["inner.bias"], module.bias)


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 8), nn.ReLU()]
        self.head = nn.Linear(8, 4)

    def forward(self, first: Tensor) -> Tensor:
        for layer in self.layers:
            first = layer(first)
        return self.head(first)


def _head_outside() -> Network:
    head = nn.Linear(8, 4)
    return Network(nn.Linear(6, 8), "first", output_adapter=lambda result: {"logits": head(result)})


@pytest.mark.parametrize(
    ("make", "named"), [(lambda: Network(_Listed(), "first"), "layers[0].weight"), (_head_outside, "head.weight")]
)
def test_a3_weights_that_the_module_does_not_have_are_refused(
    tmp_path: Path, make: Callable[[], Network], named: str
) -> None:
    """They would stay as they are, and the student's folder would not have them."""
    with raises(RecipeError, named):
        run(recipe(make()), tmp_path / "run")


def test_a3_frozen_weights_beside_the_module_are_taken(tmp_path: Path) -> None:
    head = nn.Linear(8, 4).requires_grad_(False)
    student = Network(nn.Linear(6, 8), "first", output_adapter=lambda result: {"logits": head(result)})
    assert run(recipe(student), tmp_path / "run")


def test_a3_gradient_hooks_of_parameters_are_refused(tmp_path: Path) -> None:
    """Torch copies a parameter without them, so that they would have no effect."""
    module = net()
    module.back.weight.register_hook(lambda gradient: gradient * 0)
    with raises(SettingError, "back.weight"):
        run(recipe(Network(module, "first")), tmp_path / "run")
    second = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    second[1].weight.register_hook(lambda gradient: gradient * 0)
    assert run(recipe(Network(net(), "first"), t=Network(second, "second")), tmp_path / "teacher")
