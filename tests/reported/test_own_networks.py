"""Networks of the running program: drawn from the recipe's seed, parts of each other, and modules of unusual kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import raises
from pydantic import ValidationError
from torch import Tensor, nn

from crossdistill import Network, Recipe, Stage, load_student, run
from crossdistill.compare.feasibility import check_feasibility
from crossdistill.compare.grid import Cell, Grid
from crossdistill.errors import CrossdistillError, RecipeError, ResumeError, SettingError, ShapeError
from crossdistill.models.own_network import seeded
from crossdistill.planning.plan import prepare
from crossdistill.recipe import Checkpoints
from crossdistill.runtime.hashing import fingerprint
from crossdistill.runtime.progress import Quiet
from crossdistill.testing import toy_dataset

ONE = toy_dataset(("first",), rows=60)
TWO = toy_dataset(("first", "second"), rows=60)
SUPERVISED = (Stage(method="supervised", epochs=1),)
KD = (Stage(method="supervised", learner="t", epochs=1, batch_size=12), Stage(method="kd", epochs=2, batch_size=12))


class Both(nn.Module):
    """Two branches: the student can be one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 4))
        self.second = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.first(first) + self.second(second)


def linear() -> nn.Module:
    return nn.Linear(6, 4)


def weights(out: Path) -> bytes:
    return (out / "student" / "model.safetensors").read_bytes()


def members(recipe: Recipe) -> dict[str, str]:
    plan = prepare(recipe, recipe.data, torch.device("cpu"))
    return {name: fingerprint(network) for name, network in plan.members.items()}


def test_a3_a_factory_is_drawn_from_seed_and_name() -> None:
    def recipe(seed: int) -> Recipe:
        return Recipe(
            data=TWO,
            student=Network(factory=linear, reads="first"),
            teachers={"t": Network(factory=Both, reads=("first", "second")), "u": lambda: Network(linear(), "first")},
            stages=SUPERVISED,
            student_name="s",
            seed=seed,
        )

    torch.manual_seed(1)
    zero = members(recipe(0))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert members(recipe(0)) == zero, "whatever the program drew before"
    one = members(recipe(1))
    assert all(one[name] != zero[name] for name in zero), "another seed, other weights"
    assert zero["s"] != zero["u"], "each name draws its own"
    torch.random.set_rng_state(state)
    members(recipe(0))
    assert torch.equal(torch.random.get_rng_state(), state), "the program's own random numbers stay where they were"


def test_a3_numpy_and_python_draw_from_the_seed_too() -> None:
    import random

    def drawn() -> nn.Module:
        layer = nn.Linear(6, 4)
        nn.init.constant_(layer.weight, float(np.random.rand()))
        nn.init.constant_(layer.bias, random.random())
        return layer

    before = np.random.get_state()[1].copy()
    found = [members(Recipe(data=ONE, student=drawn, stages=SUPERVISED, seed=seed))["first"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert (np.random.get_state()[1] == before).all()
    before_python = random.getstate()
    with seeded(7):
        random.random()
    assert random.getstate() == before_python


def test_a3_a_run_of_factories_is_killed_and_goes_on(tmp_path: Path) -> None:
    recipe = Recipe(
        data=ONE, student=linear, teachers={"t": linear}, stages=KD, seed=3, checkpoints=Checkpoints(steps=1)
    )
    says = Heard()
    run(recipe, tmp_path / "whole", display=says)
    assert not any("seed 3" in line for line in says.lines)
    torch.manual_seed(99)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "parts", display=Heard(4))
    torch.manual_seed(100)
    run(recipe, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert load_student(tmp_path / "parts", module=linear()).logits({"first": torch.zeros(2, 6)}).shape == (2, 4)
    run(recipe.model_copy(update={"seed": 4}), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(tmp_path / "whole")


def test_a3_a_factory_that_the_seed_does_not_hold_is_refused_where_a_run_goes_on(tmp_path: Path) -> None:
    source = torch.Generator()

    def odd() -> nn.Module:
        layer = nn.Linear(6, 4)
        nn.init.normal_(layer.weight, generator=source)
        return layer

    recipe = Recipe(data=ONE, student=linear, teachers={"t": odd}, stages=KD, checkpoints=Checkpoints(steps=1))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", display=Heard(4))
    with raises(ResumeError, "'t'", "factory"):
        run(recipe, tmp_path / "out", resume=True)


def test_a3_live_modules_and_a_seed_are_said(tmp_path: Path) -> None:
    live = Recipe(
        data=ONE, student=Network(linear(), "first"), teachers={"t": Network(linear(), "first")}, stages=SUPERVISED
    )
    for seed in (0, 5):
        says = Heard()
        run(live.model_copy(update={"seed": seed}), tmp_path / str(seed), display=says)
        said = [line for line in says.lines if "seed 5" in line]
        assert len(said) == (1 if seed else 0)
        assert all("'first'" in line and "'t'" not in line and "factory" in line for line in said), "t never trains"


FAULTY: tuple[tuple[Callable[[], Any], tuple[str, ...]], ...] = (
    (lambda: Network(reads="first"), ("factory",)),
    (lambda: Network(linear(), "first", factory=linear), ("factory",)),
    (lambda: Network(linear()), ("Linear", "reads")),
    (lambda: Network(linear(), "first", absent={"first": torch.zeros(6)}), ("absent",)),
    (lambda: Network(linear(), "first", needs="any", absent={"fist": torch.zeros(6)}), ("'fist'", "first")),
)


@pytest.mark.parametrize(("make", "facts"), FAULTY)
def test_a3_a_network_of_nothing_is_refused(make: Callable[[], Any], facts: tuple[str, ...]) -> None:
    with raises(SettingError, *facts):
        make()


def test_a3_factories_that_fail_are_refused_in_a_sentence() -> None:
    kept = linear()

    def broken() -> nn.Module:
        raise KeyError("weights.pt")

    for student, facts in ((broken, ("broken", "weights.pt")), (lambda: 3, ("int",))):
        with raises(ValidationError, *facts):
            Recipe(data=ONE, student=student, stages=SUPERVISED)
    same = Recipe(data=ONE, student=Network(factory=lambda: kept, reads="first"), stages=SUPERVISED)
    prepare(same, ONE, torch.device("cpu"))
    with raises(CrossdistillError, "same module"):
        prepare(same, ONE, torch.device("cpu"))
    with raises(AttributeError, "factory"):
        _ = Network(factory=linear, reads="first").module


def test_c_modules_bare_modules_become_networks_where_it_is_plain_what_they_read() -> None:
    recipe = Recipe(data=ONE, student=linear(), teachers={"t": linear()}, stages=SUPERVISED)
    assert isinstance(recipe.student, Network)
    assert recipe.student.reads == ("first",)
    with raises(ValidationError, "Linear", "Both", "'t'", "'u'", "Network(module, reads=...)", "first, second"):
        Recipe(data=TWO, student=linear(), teachers={"t": Both(), "u": linear}, stages=SUPERVISED)


def test_a11_a_student_that_is_a_part_of_its_teacher_is_said(tmp_path: Path) -> None:
    both = Both()
    before = fingerprint(both)
    recipe = Recipe(
        data=TWO, student=Network(both.first, "first"), teachers={"t": Network(both, ("first", "second"))}, stages=KD
    )
    says = Heard()
    run(recipe, tmp_path / "out", display=says)
    said = [line for line in says.lines if "share 2 weights" in line]
    assert len(said) == 1
    assert all(fact in said[0] for fact in ("'first'", "'t'", "0.weight"))
    assert fingerprint(both) == before
    apart = recipe.model_copy(update={"student": Network(linear(), "first")})
    run(apart, tmp_path / "apart", display=(says := Heard()))
    assert not any("share" in line for line in says.lines)


def test_a11_a_factory_that_gives_a_part_of_another_network_trains_a_copy(tmp_path: Path) -> None:
    both = Both()
    teacher = Network(both, ("first", "second"))
    before = fingerprint(both)
    recipe = Recipe(
        data=TWO,
        student=Network(factory=lambda: nn.Sequential(both.first, nn.Identity()), reads="first"),
        teachers={"t": teacher},
        stages=(Stage(method="kd", epochs=1),),
    )
    run(recipe, tmp_path / "out")
    assert fingerprint(both) == before


class Tied(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.Linear(5, 4)
        self.up.weight = self.down.weight

    def forward(self, first: Tensor) -> Tensor:
        return self.out(self.down(first).tanh() + self.up(first))


@pytest.mark.parametrize("own", [True, False])
def test_a14_ties_hold_through_run_kill_resume_and_load(tmp_path: Path, own: bool) -> None:
    def recipe() -> Recipe:
        made: Any = Network(Tied(), "first") if own else Tied
        other: Any = Network(Tied(), "first") if own else Tied
        return Recipe(data=ONE, student=made, teachers={"t": other}, stages=KD, checkpoints=Checkpoints(steps=1))

    torch.manual_seed(0)
    first = recipe()
    run(first, tmp_path / "whole", share=tmp_path / "share")
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "parts", display=Heard(4))
    run(recipe() if own is False else first, tmp_path / "parts", resume=True)
    run(first, tmp_path / "shared", share=tmp_path / "share")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole") == weights(tmp_path / "shared")
    module = load_student(tmp_path / "parts", module=Tied()).network.module
    assert module.up.weight is module.down.weight
    plain = load_student(tmp_path / "whole", module=Tied()).network.module.state_dict()
    assert torch.equal(plain["up.weight"], plain["down.weight"])


class Keeps(nn.Module):
    """Remembers a value of its last pass, graph and all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.last: Any = None

    def forward(self, first: Tensor) -> Tensor:
        self.last = {"values": [self.linear(first)]}
        return self.last["values"][0] * 2


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(4))

    def forward(self, first: Tensor) -> Tensor:
        return self.layers(first)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def old_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(6, 4))


@pytest.mark.parametrize("make", [Keeps, Lazy, old_norm])
def test_c_modules_of_unusual_kinds_train_resume_and_load(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    student, teacher = make(), make()
    if isinstance(student, Keeps):
        student(torch.ones(2, 6))
    recipe = Recipe(
        data=ONE,
        student=Network(student, "first"),
        teachers={"t": Network(teacher, "first")},
        stages=KD,
        checkpoints=Checkpoints(steps=1),
    )
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "twice")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "parts", display=Heard(4))
    run(recipe, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "twice") == weights(tmp_path / "whole")
    found = load_student(tmp_path / "parts", module=make())
    assert found.logits({"first": torch.ones(3, 6)}).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("source", ["live", "auto"])
def test_c_modules_of_another_precision_teach(tmp_path: Path, dtype: torch.dtype, source: Any) -> None:
    torch.manual_seed(0)
    networks = {
        "student": Network(wide(), "first", taps=("0", "2")),
        "teachers": {"t": Network(wide().to(dtype), "first", taps=("0", "2"))},
    }
    kd = (Stage(method="kd", epochs=4, source=source), Stage(method="vid", epochs=1, source=source))
    masks = (
        Stage(method={"name": "specialise", "taps": {"t": ("0", "2")}}, epochs=2, source=source, batch_size=12),
        Stage(method="route", epochs=4, source=source),
    )
    run(Recipe(data=ONE, **networks, stages=kd), tmp_path / "kd")
    masked = Recipe(data=ONE, **networks, stages=masks)
    if dtype == torch.float64:
        with raises(RecipeError, "double"):
            run(masked, tmp_path / "masks")
    else:
        run(masked, tmp_path / "masks")


def test_c_modules_that_refuse_their_input_name_the_types() -> None:
    mixed = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4).double())
    with raises(ShapeError, "float32", "float64", "(2, 6)"):
        Network(mixed, "first").probe(ONE.example())


NAMES = ("type", "float", "train", "half", "cuda", "forward", "keys", "training", "_modules", "items", "T_destination")


@pytest.mark.parametrize("name", NAMES)
def test_c_modules_names_that_are_attributes_of_modules(tmp_path: Path, name: str) -> None:
    other = NAMES[NAMES.index(name) - 1]
    student, teacher = (Network(wide(), "first", taps=("0", "2")) for _ in "ab")
    stages = (
        Stage(method="collaborate", epochs=1, trains=("student", name), teachers=(name,)),
        Stage(method={"name": "specialise", "taps": {name: ("0", "2")}}, epochs=1),
        Stage(method="route", epochs=1),
        *(Stage(method=method, teachers=(name,), epochs=1) for method in ("rkd", "hint", "vid")),
    )
    recipe = Recipe(data=ONE, student=student, teachers={name: teacher}, stages=stages, student_name=other)
    run(recipe, tmp_path / "out")
    assert load_student(tmp_path / "out", module=wide())


@pytest.mark.usefixtures("digits")
def test_a3_a_comparison_of_several_seeds_refuses_live_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Grid.parse("av-digits", methods="supervised", students="image", seeds=2, tiny=True)
    of_the_table = Cell.recipe
    image = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def with_own(student: Any) -> None:
        monkeypatch.setattr(
            Cell,
            "recipe",
            lambda cell: of_the_table(cell).model_copy(update={"student": student, "student_name": "image"}),
        )

    with_own(Network(image, reads="image"))
    with raises(RecipeError, "'image'", "seed"):
        check_feasibility(made.cells(), Quiet())
    assert len(check_feasibility(made.cells()[:1], Quiet()).feasible) == 1
    with_own(Network(factory=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), reads="image"))
    assert len(check_feasibility(made.cells(), Quiet()).feasible) == 2
