"""Every method on every pair of the CIFAR-100 literature: the recipe's settings, one forward and one backward pass.

Networks have their full sizes. A pair's teacher runs once: its outputs are those of a fixed teacher, except for methods
that train it. What cannot work is refused with its reason.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.distiller import Distiller
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.method import MethodConfig
from crossdistill.methods.layer_choice import chosen
from crossdistill.models import build_network
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.planning.plan import prepare
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes import make
from crossdistill.recipes.cifar import rate_for
from crossdistill.recipes.cifar_pairs import PAIRS
from crossdistill.recipes.stages import PLANS
from crossdistill.teacher import Teacher
from crossdistill.testing.fake import FakeTeacher
from tests.facts import raises

ROWS, CLASSES, TEACHER, CLIP = 2, 100, "cnn", "clip"
OTHERS = ("mst-distill", "supervised", "proxy")
ONE_BY_ONE = [name for name in PLANS if not name.startswith(OTHERS) and "release" not in name]
"""Methods without stages that hand teachers on, which only a plan can build; proxy is translate and then KD."""
SAMPLE = {
    "wrn-40-2-shufflev1": ("at", "crd", "fitnets", "ofd", "reviewkd", "richkd"),
    "vgg13-mobilenetv2": ("kdsvd", "ofd", "translate", "vid"),
}


def refused(method: str, pair: str) -> tuple[str, ...]:
    """The facts of the refusal of a method for a pair; empty where it works."""
    return ("ofd", "blocks", "student") if method == "ofd" and pair.endswith("mobilenetv2") else ()


@cache
def pictures() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, 3, 32, 32), torch.tensor([3, 41])


@cache
def dataset() -> Dataset:
    rows = 400
    return Dataset.from_arrays("pictures", {"image": torch.rand(rows, 3, 32, 32)}, torch.arange(rows) % CLASSES)


class Members:
    """The student and the teacher of a pair, and the teacher as a source of fixed outputs."""

    def __init__(self, pair: str) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = (
            build_network(name, classes=CLASSES) for name in (PAIRS[pair].student, PAIRS[pair].teacher)
        )
        batch = Batch({"image": pictures()[0]}, torch.arange(ROWS))
        spec = self.teacher.probe(batch)
        signals = [Signal.LOGITS, Signal.EMBEDDING, *map(Signal.feature, self.teacher.taps)]
        with torch.no_grad():
            outputs = self.teacher.eval()(batch, signals)
        self.fixed = FakeTeacher(TEACHER, spec, given={signal: outputs.need(signal) for signal in signals})
        self.seen: list[MethodConfig] = []
        self.clip = FakeTeacher(CLIP, OutputSpec(spec.logits, (16,)))

    def teachers(self, method: MethodConfig) -> dict[str, Network | Teacher]:
        if method.name.startswith("richkd"):
            return {TEACHER: self.fixed, CLIP: self.clip}
        if method.trains_teachers or method.name == "ofd":
            # A fixed teacher has no weights, and no batch norms that give OFD's margins.
            self.teacher.requires_grad_(True)
            return {TEACHER: self.teacher}
        return {TEACHER: self.fixed}


def step(members: Members, method: MethodConfig) -> Distiller:
    """A forward and a backward pass of a method."""
    images, targets = pictures()
    distiller = Distiller(members.student, members.teachers(method), method, data=dataset())
    distiller.set_epoch(0)
    ids = torch.arange(ROWS)
    distiller.measure([(images, targets)])
    loss = distiller(images, targets, ids=ids)
    assert torch.isfinite(loss)
    members.student.zero_grad()
    loss.backward()
    return distiller


def methods_of(method: str, pair: str) -> Iterator[MethodConfig]:
    """The methods of a recipe's stages that move the student."""
    for stage in make(f"cifar100/{method}", [f"pair={pair}"]).stages:
        if stage.method.name not in ("supervised", "salience"):
            yield stage.method


def check(members: Members, method: str, pair: str) -> None:
    facts = refused(method, pair)
    # Several recipes end in the same KD.
    for config in [config for config in methods_of(method, pair) if config not in members.seen]:
        members.seen.append(config)
        if facts:
            with raises(ApplicabilityError, *facts):
                step(members, config)
            continue
        step(members, config)
        gradients = [value.grad for value in members.student.parameters() if value.grad is not None]
        assert gradients, method
        assert all(torch.isfinite(gradient).all() for gradient in gradients), method
        assert any(gradient.any() for gradient in gradients), method


@pytest.mark.parametrize("pair", SAMPLE)
def test_a_few_methods_on_two_pairs(pair: str) -> None:
    members = Members(pair)
    for method in SAMPLE[pair]:
        check(members, method, pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_every_method_on_every_pair(pair: str) -> None:
    members = Members(pair)
    for method in ONE_BY_ONE:
        check(members, method, pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["wrn-40-2-shufflev1", "vgg13-mobilenetv2"])
def test_a_plan_masks_and_routes_the_teacher_of_a_pair(pair: str) -> None:
    recipe = make("cifar100/mst-distill", [f"pair={pair}"]).model_copy(update={"data": dataset()})
    jobs = prepare(recipe, dataset(), torch.device("cpu")).jobs
    assert [job.stage.method.name for job in jobs] == ["collaborate", "specialise", "route"]


def networks(settings: list[str], method: str = "kd") -> tuple[str, str, float]:
    """The teacher and the student of a recipe, and the learning rate of its last stage."""
    recipe = make(f"cifar100/{method}", settings)
    teacher, student = recipe.teachers[TEACHER], recipe.student
    assert isinstance(teacher, NetworkConfig)
    assert isinstance(student, NetworkConfig)
    return teacher.model, student.model, recipe.stages[-1].optimizer.learning_rate


def test_a_pair_names_its_networks_and_the_students_rate() -> None:
    assert len(PAIRS) == 17
    for name, pair in PAIRS.items():
        assert name == f"{pair.teacher}-{pair.student}".replace("cifar-", "")
        rate = 0.01 if any(part in pair.student for part in ("shuffle", "mobilenet")) else 0.05
        assert networks([f"pair={name}"]) == (pair.teacher, pair.student, rate)
    assert networks(["pair=vgg13-vgg8", "student=cifar-shufflev2"]) == ("cifar-vgg13", "cifar-shufflev2", 0.01)
    # The folder of a file of weights is no part of the network's name.
    assert rate_for("cifar-resnet20:shuffled/weights.pth") == 0.05
    assert rate_for("cifar-shufflev1:weights.pth") == rate_for("timm:mobilenetv3_small_050") == 0.01
    assert networks([]) == ("cifar-resnet32x4", "cifar-resnet8x4", 0.05)
    with raises(SettingError, "pair", "wrn-40-2-wrn-16-2"):
        make("cifar100/kd", ["pair=wrn-40-2-wrn-16-1"])
    alone = make("cifar100/supervised", ["pair=vgg13-mobilenetv2"])
    assert alone.stages[0].optimizer.learning_rate == 0.01


def test_settings_that_were_published_for_a_pair() -> None:
    beta = {"resnet56-resnet20": 2.0, "vgg13-vgg8": 6.0, "resnet32x4-resnet8x4": 8.0}
    for pair, value in beta.items():
        (dkd,) = methods_of("dkd", pair)
        assert dkd.model_dump()["beta"] == value
    for pair, epochs, rate in (("wrn-40-2-mobilenetv2", 480, 0.005), ("resnet32x4-shufflev2", 960, 0.01)):
        stage = make("cifar100/mlkd", [f"pair={pair}"]).stages[-1]
        assert (stage.epochs, stage.optimizer.learning_rate, stage.optimizer.milestones) == (
            epochs,
            rate,
            (150, 180, 210),
        )
    shorter = make("cifar100/mlkd", ["pair=wrn-40-2-mobilenetv2", "epochs=24"]).stages[-1]
    assert (shorter.epochs, shorter.optimizer.milestones) == (24, (15, 18, 21))
    hint, _ = methods_of("fitnets", "vgg13-mobilenetv2")
    assert hint.model_dump()["taps"] == ("blocks.2",)
    assert hint.model_dump()["teacher_taps"] == {TEACHER: ("block2_relu",)}


@pytest.mark.parametrize(("name", "before", "after"), [
    ("cifar-wrn-16-1", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"], ["block1", "block2", "block3"]),
    ("cifar-resnet8", ["layer1.0.sum", "layer2.0.sum", "layer3.0.sum"], ["layer1", "layer2", "layer3"]),
    ("cifar-shufflev2", ["layer1.3.joined", "layer2.7.joined", "layer3.3.joined"], ["layer1", "layer2", "layer3"]),
])  # fmt: skip
def test_without_a_recipe_a_stage_is_compared_once(name: str, before: list[str], after: list[str]) -> None:
    spec = build_network(name, classes=3).probe(Batch({"image": pictures()[0]}, torch.arange(ROWS)))
    assert [signal.tap for signal in chosen("maps", spec, "before")] == before
    assert [signal.tap for signal in chosen("maps", spec, "after")] == after


def test_the_page_of_pairs_has_every_pair_and_its_settings() -> None:
    page = (Path(__file__).parents[2] / "docs/cifar-pairs.md").read_text(encoding="utf-8")
    assert "published, not measured here" in page
    for name, pair in PAIRS.items():
        rate = 0.01 if any(part in pair.student for part in ("shuffle", "mobilenet")) else 0.05
        assert f"| `{name}` | {rate} | {pair.beta:g} | {pair.mlkd_epochs}, {pair.mlkd_rate:g} |" in page
