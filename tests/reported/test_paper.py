"""The paper's method as the paper has it: what an audit against the equations and the released code found."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import rows_of
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

from crossdistill import Batch, NetworkConfig, OutputSpec, Recipe, Signal, run
from crossdistill.cli.main import app
from crossdistill.compare.grid import Grid
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.data.sets.av_mnist import AvMnistConfig
from crossdistill.losses import balance_kl, distillation_kl
from crossdistill.method import DataSpec, Method, MethodConfig, Progress, Step
from crossdistill.methods.route import Route
from crossdistill.nets import proxy_for
from crossdistill.recipes import make
from crossdistill.recipes.mst_distill import SWITCHES, Switch
from crossdistill.recipes.setup import ExperimentSetup, Length
from crossdistill.recipes.stages import preset_notes, recipe
from crossdistill.testing import FakeTeacher
from crossdistill.training.metrics import measure
from crossdistill.training.predictions import Predictions

SPEC = OutputSpec(logits=(4,))
ROWS = 8


def built(config: MethodConfig, *teachers: str) -> Method:
    torch.manual_seed(0)
    return config.build(SPEC, dict.fromkeys(teachers, SPEC), DataSpec(rows=ROWS, classes=4))


def fakes(*names: str, modal: bool = False) -> dict[str, FakeTeacher]:
    return {name: FakeTeacher(name, SPEC, (name,) if modal else ()) for name in names}


def one_step(method: Method, student: Any, teachers: Mapping[str, Any], batch: Batch | None = None) -> Step:
    return method(rows_of(ROWS) if batch is None else batch, student, teachers, Progress())


def test_b1_the_balance_term_reaches_the_student() -> None:
    """Equations 11, 12 and 18: the gate reads the student's output, and nothing stops the gradient there."""
    gradients = {}
    for detached in (None, False, True):
        logits = torch.linspace(-1, 1, ROWS * 4).reshape(ROWS, 4).sin().requires_grad_()
        student = FakeTeacher("student", SPEC, given={Signal.LOGITS: logits})
        given = {} if detached is None else {"gate_detached": detached}
        method = built(Route(**given), "a", "b", "c")
        one_step(method, student, fakes("a", "b", "c")).terms["balance"].value.backward()
        gradients[detached] = logits.grad
    assert gradients[True] is None
    assert gradients[None] is not None
    own = logits.detach().clone().requires_grad_()
    balance_kl(method.get_submodule("gate")(own)).backward()
    torch.testing.assert_close(gradients[None], own.grad)


def test_b3_ablations_share_one_rule() -> None:
    """What is no stage differs between ablations in routing alone: cross-entropy + λ1 · divergence for all."""
    last = {name: make(f"av-digits/mst-distill{name}", [], 0).stages[-1] for name in ("", "-a", "-b", "-c", "-d", "-e")}
    methods = {name: stage.method.model_dump() for name, stage in last.items()}
    assert {name: one.pop("routing") for name, one in methods.items()} == {
        name: "mean" if name in ("-a", "-e") else "balanced" for name in last
    }
    assert all(one == methods[""] for one in methods.values())
    rest = [stage.model_dump(exclude={"name", "method"}) for stage in last.values()]
    assert all(one == rest[0] for one in rest)


def test_b3_the_mean_of_teachers_by_hand() -> None:
    method = built(Route(routing="mean", temperature=3.0, distil_decay_every=2), "a", "b")
    assert not dict(method.named_parameters()), "without routing there is no gate"
    student, teachers = FakeTeacher("student", SPEC), fakes("a", "b", modal=True)
    there = torch.arange(ROWS) % 4
    batch = rows_of(ROWS, present={"a": there < 2, "b": (there == 0) | (there == 2)})
    step = method(batch, student, teachers, Progress(epoch=5))
    assert (step.terms["task"].weight, step.terms["distil"].weight) == (1.0, 0.25)
    own = student(batch).need(Signal.LOGITS)
    wanted = torch.zeros(ROWS)
    for row in range(ROWS):
        seen = [name for name, mask in batch.present.items() if bool(mask[row])]
        for name in seen:
            theirs = FakeTeacher(name, SPEC)(batch).need(Signal.LOGITS)
            wanted[row] += distillation_kl(own[row : row + 1], theirs[row : row + 1], 3.0)[0] / len(seen)
    torch.testing.assert_close(step.terms["distil"].value, wanted)


def test_b3_one_teacher_has_a_mean() -> None:
    assert one_step(built(Route(routing="mean"), "a"), FakeTeacher("student", SPEC), fakes("a")).terms


@pytest.mark.parametrize(
    ("shape", "logits", "normal"),
    [
        # The released ProxyNet initialises its convolution alone, ProxyNet1D and ProxyNet_resoFixed both layers.
        ((128, 14, 14), (10,), {"convolution": True, "fc": False}),
        ((84,), (10,), {"fc1": True, "fc2": True}),
        ((64, 24, 32), (41, 48, 64), {"convolution": True, "out": True}),
    ],
)
def test_b4_proxies_start_as_released(shape: tuple[int, ...], logits: tuple[int, ...], normal: dict[str, bool]) -> None:
    torch.manual_seed(0)
    proxy = proxy_for(shape, logits)
    for name, released in normal.items():
        layer = proxy.get_submodule(name)
        outputs, inputs = layer.weight.shape[:2]
        wanted = math.sqrt(2 / outputs) if released else 1 / math.sqrt(3 * inputs)
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.1)
        if layer.bias is not None:
            assert bool((layer.bias == 0).all()) == released


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("occurring", [1, 3, 6])
def test_b5_balanced_accuracy_is_the_mean_recall_over_target_classes(occurring: int) -> None:
    generator = torch.Generator().manual_seed(occurring)
    targets = torch.randint(0, occurring, (200,), generator=generator)
    drawn = torch.randint(0, 6, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.5, targets, drawn)
    wanted = balanced_accuracy_score(targets, predicted)
    assert measure("balanced-accuracy", Predictions(targets, predicted, targets, columns=8)) == pytest.approx(wanted)


def test_b8_the_hard_share_of_each_teacher_by_hand() -> None:
    method = built(Route(k=2), "a", "b", "c")
    there = torch.arange(ROWS)
    batch = rows_of(ROWS, present={"a": there < 6, "b": there < 3, "c": there < 8})
    student, teachers = FakeTeacher("student", SPEC), fakes("a", "b", "c", modal=True)
    logs = one_step(method, student, teachers, batch).logs
    gate = method.get_submodule("gate")(student(batch).need(Signal.LOGITS))
    counts = dict.fromkeys(("a", "b", "c"), 0)
    for row in range(ROWS):
        seen = [index for index, name in enumerate(counts) if bool(batch.present[name][row])]
        for index in sorted(seen, key=lambda index: -float(gate[row, index].detach()))[:2]:
            counts[list(counts)[index]] += 1
    assert {name: int(logs[f"chosen_rows/{name}"]) for name in counts} == counts
    assert sum(counts.values()) == 3 * 2 + 3 * 2 + 2
    shares = method.epoch_logs({name: 2 * float(value) for name, value in logs.items()})
    assert shares == {f"chosen/{name}": pytest.approx(count / 14) for name, count in counts.items()}


def test_b8_every_epoch_has_the_hard_shares(tmp_path: Path) -> None:
    made = make("av-digits/mst-distill-b", [], 0).tiny()
    run(made, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "route" and line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert len(epochs) == 1 + max(line["epoch"] for line in steps)
    for line in epochs:
        mine = [step for step in steps if step["epoch"] == line["epoch"]]
        counts = {name: sum(step[f"chosen_rows/{name}"] for step in mine) for name in ("mm", "audio")}
        total = sum(counts.values())
        assert line | {f"chosen/{name}": count / total for name, count in counts.items()} == line


def three_modalities(**changes: Any) -> ExperimentSetup:
    length = Length(epochs=1, learning_rate=0.01)
    audio = NetworkConfig(model="small-audio")
    networks = {"image": NetworkConfig(model="small-image"), "audio": audio, "radar": audio}
    taps = {"image": ("conv2", "fc1"), "mm": ("concat_identity", "fc1")}
    given: dict[str, Any] = {
        "data": AvDigitsConfig(),
        "networks": networks,
        "multimodal": NetworkConfig(model="small-mm"),
        "taps": taps | dict.fromkeys(("audio", "radar"), ("conv3", "fc1")),
        **dict.fromkeys(("supervised", "collaborate", "specialise", "distil"), length),
    }
    return ExperimentSetup(**(given | changes))


@pytest.mark.parametrize(
    ("student", "kind", "teachers"),
    [
        ("image", "mm+cm", ["mm", "audio", "radar"]),
        ("audio", "cm", ["image", "radar"]),
        ("radar", "mm+cm", ["mm", "image", "audio"]),
        ("radar", "mm", ["mm"]),
    ],
)
def test_b9_all_other_modalities_teach(student: str, kind: Any, teachers: list[str]) -> None:
    """Equation 5 has a specialised teacher for every modality but the student's."""
    made = recipe(three_modalities(), "mst-distill", student=student, teachers=kind, seed=0, control=None)
    assert list(made.teachers) == teachers
    taps = made.stages[1].method.model_dump()["taps"]
    assert list(taps) == teachers


def test_b9_two_modalities_have_the_teachers_that_they_had() -> None:
    assert list(make("av-digits/mst-distill", [], 0).teachers) == ["mm", "audio"]
    assert list(make("av-digits/mst-distill", ["student=audio"], 0).teachers) == ["mm", "image"]
    assert list(make("av-digits/c2kd", [], 0).teachers) == ["audio"]


def _value(made: Recipe, setting: str) -> Any:
    holder, _, field = setting.partition(".")
    methods = {stage.method.name: stage.method for stage in made.stages}
    return getattr(made.data if holder == "data" else methods[holder], field)


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.setting)
def test_b2_presets_have_what_their_table_says(switch: Switch) -> None:
    plain = AvMnistConfig()
    for preset in ("paper", "release", "default"):
        made = make(f"av-mnist/mst-distill{'' if preset == 'default' else f'-{preset}'}", [], 0)
        wanted = getattr(switch, preset)
        if wanted is None:
            wanted = getattr(plain, switch.setting.partition(".")[2])
        assert _value(made, switch.setting) == wanted, preset


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_b2_published_presets_have_published_weights_at_few_labels(preset: str) -> None:
    route = make(f"av-digits/mst-distill-{preset}", ["labelled=0.05"], 0).stages[-1].method
    names = ("weight_task", "weight_distil", "temperature", "distil_decay", "distil_decay_every")
    assert [getattr(route, name) for name in names] == [1.0, 1.0, 4.0, 0.5, 30]
    assert make("av-digits/mst-distill", ["labelled=0.05"], 0).stages[-1].method != route


def test_b2_the_papers_loss_has_no_factor_of_the_temperature() -> None:
    made = make("av-digits/mst-distill-paper", [], 0)
    assert [stage.method.model_dump()["squared"] for stage in made.stages] == [False] * 3


def test_b2_a_setting_of_the_user_goes_before_the_presets() -> None:
    made = make("av-mnist/mst-distill-release", ["data.split=speaker"], 0)
    assert (_value(made, "data.split"), _value(made, "data.release_compat")) == ("speaker", True)
    notes = " ".join(preset_notes(made))
    assert "data.release_compat=True" in notes
    assert "data.split" not in notes


def test_b2_a_run_says_what_its_preset_settles() -> None:
    released = preset_notes(make("av-mnist/mst-distill-release", [], 0))
    assert len(released) == 1
    assert all(text in released[0] for text in ("data.split=sample", "data.release_compat=True", "route.reduce=mean"))
    elsewhere = preset_notes(make("av-digits/mst-distill-release", [], 0))
    assert "av-digits" in elsewhere[1]
    assert "data.split, data.release_compat" in elsewhere[1]
    assert preset_notes(make("av-digits/kd", [], 0)) == []


def test_b2_list_methods_says_in_what_presets_differ() -> None:
    rows = json.loads(command("list", "methods", "--json"))
    assert "Undefined" not in json.dumps(rows)
    found = {row["name"]: row["differs"] for row in rows if row["name"].startswith("mst-distill")}
    assert set(found) == {"mst-distill", "mst-distill-paper", "mst-distill-release"}
    assert found["mst-distill-paper"] == []
    for name, preset in (("mst-distill", "default"), ("mst-distill-release", "release")):
        wanted = [switch.setting for switch in SWITCHES if getattr(switch, preset) != switch.paper]
        assert [one["setting"] for one in found[name]][: len(wanted)] == wanted
        assert all(one["why"] for one in found[name])
    text = command("list", "methods")
    assert all(word in text for word in ("mst-distill-paper", "route.balance_divided", "data.release_compat"))


def test_b2_a_preset_on_other_data_is_not_compared_with_the_rest() -> None:
    both = {"methods": "kd,mst-distill-release", "students": "image"}
    apart = Grid.parse("av-mnist", **both)
    assert {cell.method for cell in apart.cells()} == {"kd"}
    reason = apart.undefined()["mst-distill-release"]
    assert all(text in reason for text in ("data.split=sample", "data.release_compat=True"))
    equal = Grid.parse("av-mnist", settings=["data.split=sample", "data.release_compat=True"], **both)
    assert {cell.method for cell in equal.cells()} == {"kd", "mst-distill-release"}
    assert not equal.undefined()
    for alone in (Grid.parse("av-mnist", methods="mst-distill-release"), Grid.parse("av-digits", **both)):
        assert "mst-distill-release" in {cell.method for cell in alone.cells()}


def command(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output
