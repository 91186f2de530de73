"""The rivals as they are published: where they read features, what they train, and what they cannot distil."""

import json
from pathlib import Path

import pytest
import torch
from builders import rows_of
from facts import raises
from torch import Tensor, nn
from typer.testing import CliRunner

from crossdistill import DataSpec, Network, OptimizerConfig, Progress, Recipe, Stage, load_student, run
from crossdistill.cli.main import app
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.errors import ApplicabilityError, RecipeError, SettingError
from crossdistill.losses.spatial import pooled_vector
from crossdistill.methods import DIST, KD, METHODS, Hint
from crossdistill.methods.feature_method import FeatureConfig
from crossdistill.methods.layer_choice import chosen
from crossdistill.methods.logit_method import LogitConfig
from crossdistill.methods.logit_shapes import ON_FEATURES
from crossdistill.models import build_network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.recipes import PLANS, make
from crossdistill.testing import FakeTeacher, toy_dataset

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
    assert (method["taps"], method["teacher_taps"]) == (("conv3_maxpool_flatten",), {"image": ("fc1_relu",)})


class Layers(nn.Module):
    """Two layers whose activations are modules of their own, and one that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_act = nn.Conv2d(1, 3, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)
        self.b, self.b_act = nn.Conv2d(3, 5, 3, padding=1), nn.GELU()
        self.c = nn.Conv2d(5, 5, 3, padding=1)
        self.end = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.c(self.b_act(self.b(self.a_act(self.a(x))))).mean((2, 3)))


def test_b6_own_networks_are_read_before_or_after_their_activation() -> None:
    network = Network(Layers(), "first", taps=("a", "a_act", "b", "b_act", "c", "end"))
    spec = network.probe(toy_dataset({"first": (1, 6, 6)}).example())
    assert spec.activated == {"a": "a_act", "b": "b_act"}
    assert [signal.tap for signal in chosen("maps", spec, METHODS["at"].activation)] == ["a_act", "b_act", "c"]
    assert [signal.tap for signal in chosen("maps", spec, METHODS["ofd"].activation)] == ["a", "b", "c"]


def test_b6_methods_choose_by_themselves_what_they_want() -> None:
    spec = OutputSpec((4,), None, {"a": (3, 6, 6), "a_act": (3, 6, 6)}, {"a": "a_act"})
    assert Signal.feature("a_act") in chosen("maps", spec)
    assert Signal.feature("a") in chosen("maps", spec, "before")


class Branches(nn.Module):
    """Two branches, one of them hinted, and what lies behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.hinted = nn.Linear(6, 5), nn.Linear(5, 5)
        self.beside = nn.Linear(6, 5)
        self.above, self.end = nn.Linear(10, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.hinted(self.below(x).relu()), self.beside(x)
        return self.end(self.above(torch.cat([one, other], 1)).relu())


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


TWO = OutputSpec((2,), (5,), {"map": (3, 4, 4), "late": (3, 2, 2)})
ON_TWO = DataSpec(rows=20, classes=2, targets=torch.arange(20) % 2)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if issubclass(one, LogitConfig)])
def test_a10_two_classes_are_not_standardised(name: str) -> None:
    settings = {"beta": 0.0} if name == "dist" else {}
    with raises(ApplicabilityError, 2, *(() if name == "dkd" else ("standardise",))):
        METHODS[name].model_validate({"standardise": True, **settings}).build(TWO, {"t": TWO}, ON_TWO)


def test_a10_dist_on_two_classes_keeps_its_rows_alone() -> None:
    with raises(ApplicabilityError, "2 classes", "beta"):
        METHODS["dist"]().build(TWO, {"t": TWO}, ON_TWO)
    METHODS["dist"].model_validate({"beta": 0.0}).build(TWO, {"t": TWO}, ON_TWO)


def test_a10_it_is_found_before_anything_trains(tmp_path: Path) -> None:
    data = toy_dataset(("first",), classes=2)
    networks = [Network(nn.Linear(6, 2), "first") for _ in range(2)]
    stages = tuple(
        Stage(name=name, method=method, epochs=1) for name, method in (("a", KD(standardise=True)), ("b", DIST()))
    )
    recipe = Recipe(name="two", data=AvDigitsConfig(), student=networks[0], teachers={"t": networks[1]}, stages=stages)
    with pytest.raises(RecipeError) as caught:
        run(recipe, tmp_path / "out", dataset=data)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["stages.a", "stages.b"]


# Those whose signal is not a gradient to the student through its logits or features, or which need settings.
OTHERS = {"supervised", "specialise", "salience", "route"}
FUSING = {"richkd", "richkd-l", "richkd-f"}
"""Those that fuse two or more teachers."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OTHERS])
def test_a10_whatever_accepts_two_classes_gives_a_gradient_from_the_teacher(name: str) -> None:
    """Logits on which the teacher and the student disagree: something has to move the student besides the labels."""
    of_some = {"dist": {"beta": 0.0}, "crd": {"negatives": 8}, "multi-distillation": {"routing": "all"}}
    settings = {"negatives": 8} if name in FUSING else of_some.get(name, {})
    config = METHODS[name].model_validate(settings)
    torch.manual_seed(0)
    names = ("t", "u") if name in FUSING else ("t",)
    try:
        method = config.build(TWO, dict.fromkeys(names, TWO), ON_TWO)
    except ApplicabilityError:
        assert name == "dkd"
        return
    student, *others = (FakeTeacher(who, TWO, signals=_signals(0), given=_signals(n)) for n, who in enumerate("stu"))
    batch = rows_of(targets=torch.arange(8) % 2)
    step = method(batch, student, dict(zip(names, others, strict=False)), Progress(epoch=1))
    signal = sum((t.reduced(8) * t.weight).sum() for key, t in step.terms.items() if not key.startswith("task"))
    leaves = [value for value in student.given.values() if value.requires_grad]
    gradients = torch.autograd.grad(signal, leaves, allow_unused=True)
    assert any(one is not None and one.abs().max() > 1e-7 for one in gradients), f"{name} moves nothing"


def _signals(seed: int) -> dict[Signal, Tensor]:
    source = torch.Generator().manual_seed(seed)
    shapes = {
        Signal.LOGITS: (2,),
        Signal.EMBEDDING: (5,),
        **{Signal.feature(tap): s for tap, s in TWO.features.items()},
    }
    return {signal: torch.randn((8, *shape), generator=source).requires_grad_() for signal, shape in shapes.items()}


def test_a10_a_single_class_is_refused() -> None:
    one = OutputSpec((1,), (5,))
    with raises(ApplicabilityError, "1 class"):
        KD().build(one, {"t": one}, DataSpec(rows=20, classes=1))


@pytest.mark.parametrize(
    ("name", "mine", "theirs"),
    [
        ("at", (3, 8, 1), (3, 1, 8)),
        ("nst", (3, 8, 1), (3, 1, 8)),
        ("kdsvd", (3, 8, 1), (3, 8, 4)),
        ("kdsvd", (3, 8), (3, 8)),
    ],
)
def test_a10_maps_that_share_one_position_or_column_are_refused(
    name: str, mine: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    specs = [OutputSpec((4,), None, {"a": shape, "b": shape}) for shape in (mine, theirs)]
    with raises(ApplicabilityError, "(3, 8", "single"):
        METHODS[name]().build(specs[0], {"t": specs[1]}, DataSpec(rows=20, classes=4))


@pytest.mark.parametrize(("name", "least"), [("rkd", 3), ("pkt", 2), ("sp", 2), ("dist", 2)])
def test_a10_a_batch_of_fewer_rows_than_are_compared_is_refused(name: str, least: int, tmp_path: Path) -> None:
    networks = [Network(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), "first", taps=("0",)) for _ in range(2)]
    stage = Stage(method=METHODS[name](), epochs=1, batch_size=least - 1)
    recipe = Recipe(
        name="few", data=AvDigitsConfig(), student=networks[0], teachers={"t": networks[1]}, stages=(stage,)
    )
    with raises(RecipeError, least, f"batch_size is {least - 1}"):
        run(recipe, tmp_path / "out", dataset=toy_dataset(("first",)))


FEATURES = [
    name for name, one in METHODS.items() if issubclass(one, FeatureConfig) and name != "c2kd" and name not in FUSING
]


def test_c_class_counts_that_differ_come_with_a_cure() -> None:
    student, teacher = OutputSpec((4,)), OutputSpec((1000,))
    with raises(ApplicabilityError, 1000, "output_adapter=lambda", *FEATURES):
        KD().build(student, {"big": teacher}, DataSpec(rows=20, classes=4))
    assert set(FEATURES) == set(ON_FEATURES)
    with pytest.raises(ApplicabilityError) as caught:
        KD().build(teacher, {"small": student}, DataSpec(rows=20, classes=1000))
    assert "output_adapter=" not in str(caught.value)


class Maps(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.end = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.b(self.a(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("name", FEATURES)
def test_c_class_counts_do_not_matter_to_methods_on_features(name: str, classes: int, tmp_path: Path) -> None:
    student, teacher = (Network(Maps(size), "first", taps=("a", "b")) for size in (4, classes))
    settings = {"negatives": 8} if name == "crd" else {}
    stage = Stage(method=METHODS[name].model_validate(settings), epochs=1, steps=2)
    recipe = Recipe(name="counts", data=AvDigitsConfig(), student=student, teachers={"t": teacher}, stages=(stage,))
    run(recipe, tmp_path / "out", dataset=toy_dataset({"first": (1, 6, 6)}, rows=60))


def test_c_class_counts_are_cured_by_a_map_of_classes(tmp_path: Path) -> None:
    teacher = Network(Maps(1000), "first", output_adapter=lambda logits: {"logits": logits[:, [7, 1, 3, 999]]})
    recipe = Recipe(
        name="mapped",
        data=AvDigitsConfig(),
        student=Network(Maps(4), "first"),
        teachers={"t": teacher},
        stages=(Stage(method=KD(), epochs=1, steps=2),),
    )
    run(recipe, tmp_path / "out", dataset=toy_dataset({"first": (1, 6, 6)}, rows=60))


@pytest.mark.parametrize("what", ["methods", "recipes", "data", "models"])
def test_d_lists_are_json_through_and_through(what: str) -> None:
    said = CliRunner().invoke(app, ["list", what, "--json"])
    assert said.exit_code == 0
    assert "Undefined" not in said.stdout
    rows = json.loads(said.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if what == "methods":
        assert next(row for row in rows if row["name"] == "at")["settings"]["teacher_taps"] == {}
        assert all(row["settings"][name] is None for row in rows for name in row.get("required", ()))


NINE = ("kd", "mlld", "fitnets", "ofa", "rkd", "crd", "dml", "mgdfr", "c2kd")


def released(name: str, student: str, teachers: str | None = None, data: str = "av-mnist") -> Recipe:
    given = [f"student={student}", *([f"teachers={teachers}"] if teachers else [])]
    return make(f"{data}/{name}-release", given, 0)


@pytest.mark.parametrize("name", NINE)
def test_b2_every_rival_of_table_1_has_a_release_preset_that_says_what_differs(name: str) -> None:
    recipe = released(name, "image")
    data = recipe.data
    assert (data.split, data.release_compat) == ("sample", True)
    said = json.loads(CliRunner().invoke(app, ["list", "methods", "--json"]).stdout)
    row = next(row for row in said if row["name"] == f"{name}-release")
    assert {one["setting"] for one in row["differs"]} >= {"data.split", "data.release_compat"}
    # What a preset says of a method's setting is what its recipe has.
    methods = {stage.method.name: stage.method for stage in recipe.stages}
    for one in PLANS[f"{name}-release"].differs or ():
        holder, _, field = one.setting.partition(".")
        if field in (type(methods[holder]).model_fields if holder in methods else {}) and field != "taps":
            assert getattr(methods[holder], field) == one.value, one.setting


# Layers of the student and the teacher, as the released scripts hook them.
TABLE = [
    ("rkd", "image", "mm", ("fc1",), ("fc1",)),
    ("rkd", "audio", "cm", ("conv3",), ("fc1",)),
    ("crd", "image", "cm", ("fc1",), ("conv3",)),
    ("c2kd", "image", "cm", ("fc1",), ("conv3_maxpool",)),
    ("c2kd", "audio", "cm", ("conv3_maxpool",), ("fc1",)),
    ("fitnets", "image", "mm", ("conv3", "fc1"), ("concat_identity", "fc1")),
    ("fitnets", "audio", "mm", ("conv2", "conv3"), ("concat_identity", "fc1")),
    ("fitnets", "image", "cm", ("conv1", "flatten_identity"), ("conv2", "conv3_maxpool_flatten")),
    ("fitnets", "audio", "cm", ("conv2", "conv3_maxpool_flatten"), ("conv1", "flatten_identity")),
]


@pytest.mark.parametrize(("name", "student", "kind", "mine", "theirs"), TABLE)
def test_b2_released_layers(name: str, student: str, kind: str, mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    recipe = released(name, student, kind)
    (method,) = [stage.method for stage in recipe.stages if isinstance(stage.method, FeatureConfig)]
    assert method.taps == mine
    assert list(method.teacher_taps.values()) == [theirs]


@pytest.mark.parametrize(("student", "last"), [("image", "fc1"), ("audio", "conv3")])
def test_b2_released_ofa_has_three_stages(student: str, last: str) -> None:
    taps = ("conv1", "conv2", last)
    method = released("ofa", student).stages[-1].method
    assert (method.taps, method.stages, method.final_epsilon) == (taps, "mean", None)


def test_b2_released_fitnets_train_the_hinted_layers_alone_from_one_teacher() -> None:
    hint = next(stage for stage in released("fitnets", "audio", "cm").stages if stage.method.name == "hint")
    assert hint.trained == ("student:conv2", "student:conv3_maxpool_flatten")
    with raises(SettingError, "one teacher"):
        released("fitnets", "audio", "mm+cm")


@pytest.mark.parametrize("name", ["rkd", "crd"])
def test_b2_the_audio_networks_map_is_pooled_and_flattened(name: str) -> None:
    config = released(name, "audio").stages[-1].method
    spec = {who: OutputSpec((10,), None, {"conv3": (128, 28, 28), "fc1": (298,)}) for who in ("student", "mm")}
    data = DataSpec(rows=20, classes=10, targets=torch.arange(20) % 10)
    method = config.build(spec["student"], {"mm": spec["mm"]}, data)
    assert method.get_submodule("mine.mm.fc").weight.shape == (128, 25_088)
    feature = torch.randn(2, 3, 4, 4)
    assert torch.equal(pooled_vector(feature), nn.functional.max_pool2d(feature, 2).flatten(1))


@pytest.mark.parametrize("labelled", [0.05, 1.0])
def test_b2_released_weights_are_published_whatever_the_labels(labelled: float) -> None:
    for name in ("kd", "fitnets", "mgdfr"):
        recipe = make(f"av-digits/{name}-release", [f"labelled={labelled}"], 0)
        assert recipe.stages[-1].method == KD()
