"""Switches that make a step cheaper: half precision, compiled networks, steps replayed as graphs, fused optimizers."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import toy_recipe
from facts import raises
from torch import Tensor, nn

from crossdistill import Batch, Network, OptimizerConfig, Progress, Recipe, Signal, Stage, run
from crossdistill.autograd import factored as factored_gradient
from crossdistill.autograd.factored import FactoredGradient
from crossdistill.errors import NonFiniteError, RecipeError, SettingError, ShapeError
from crossdistill.methods import KD, Route, Specialise, Supervised
from crossdistill.methods.translate import Translate
from crossdistill.planning.preflight import graph_faults
from crossdistill.run_folder.loggers import Tracking
from crossdistill.testing import toy_dataset
from crossdistill.testing.rehearsal import Contract, Rehearsal
from crossdistill.training.cuda_graphs import EAGER_STEPS, GraphedStep
from crossdistill.training.monitor import SKIPS_ALLOWED, Monitor
from crossdistill.weighting import DotConfig, PCGradConfig, UncertaintyConfig

DATA = toy_dataset()


def rehearsal(method: Any = None, **stage: Any) -> Rehearsal:
    return Rehearsal(Contract(method or KD(), DATA, stage.pop("trains", "student")), teachers=2, **stage)


def steps(case: Rehearsal, count: int, first: int = 0) -> list[dict[str, Tensor]]:
    return [case.step(case.rows(number), number) for number in range(first, first + count)]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("method", "trains"),
    [(KD(), "student"), (Route(), "student"), (Specialise(taps={"teacher-0": ("joint", "hidden")}), "method")],
    ids=["kd", "route", "specialise"],
)
def test_half_precision_learns_what_single_precision_learns(name: str, method: Any, trains: str) -> None:
    seen: list[torch.dtype] = []
    exact, half = rehearsal(method, trains=trains), rehearsal(method, trains=trains, precision=name)
    for module in half.job.student.network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, _a, result: seen.append(result.dtype))
    before = exact.weights()
    wanted, found = steps(exact, 3), steps(half, 3)
    assert set(seen) == {getattr(torch, name)}
    for one, other in zip(wanted, found, strict=True):
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=0.05)
        assert other["loss"].dtype == torch.float32
    after, rough = exact.weights(), half.weights()
    assert all(value.dtype == before[key].dtype for key, value in rough.items())
    moved = torch.cat([(after[key] - before[key]).flatten().double() for key in before])
    nearly = torch.cat([(rough[key] - before[key]).flatten().double() for key in before])
    assert float(nn.functional.cosine_similarity(moved, nearly, dim=0)) > 0.98
    assert float(nearly.norm() / moved.norm()) == pytest.approx(1, abs=0.1)


def test_validation_is_in_single_precision() -> None:
    exact, half = rehearsal(), rehearsal(precision="bfloat16")
    for name, value in exact.validated().items():
        assert torch.equal(value, half.validated()[name])


def test_a_step_that_overflows_is_left_out_and_halves_the_scale() -> None:
    case = rehearsal(precision="float16")
    before = case.weights()
    case.training.precision._scaler._init_scale = 2.0**40
    (logs,) = steps(case, 1)
    assert (float(logs["skipped"]), float(logs["gradient_norm"])) == (1, 0)
    assert all(torch.equal(value, before[key]) for key, value in case.weights().items())
    assert case.training.state()["precision"]["scale"] == 2.0**39
    while float(logs["skipped"]):
        (logs,) = steps(case, 1)
    assert not all(torch.equal(value, before[key]) for key, value in case.weights().items())


def test_the_scale_is_taken_up_by_a_resumed_stage() -> None:
    case, other = rehearsal(precision="float16"), rehearsal(precision="float16")
    case.training.precision._scaler._init_scale = 2.0**40
    steps(case, 2)
    other.training.load_state(case.training.state())
    assert other.training.state()["precision"] == case.training.state()["precision"]


def test_gradients_that_always_overflow_end_the_run(tmp_path: Path) -> None:
    with Tracking(tmp_path) as tracking:
        monitor = Monitor("kd", "cpu", tracking, lambda: "Nothing was saved")
        values = {"loss": torch.ones(()), "skipped": torch.ones(())}
        for number in range(SKIPS_ALLOWED):
            monitor.add(torch.arange(3), Progress(0, 1, number, 1000), values)
            monitor.check()
        monitor.add(torch.arange(3), Progress(0, 1, SKIPS_ALLOWED, 1000), values)
        with raises(NonFiniteError, 33):
            monitor.check()


def test_what_was_skipped_is_in_the_metrics(tmp_path: Path) -> None:
    stage = Stage(method=KD(), epochs=1, batch_size=24, precision="float16")
    run(toy_recipe(stage, data=DATA), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["skipped"] for line in lines if line["kind"] == "step"} <= {0.0, 1.0}


class Rerun:
    """Graphs that repeat their work by doing it again, on the memory that they were recorded on."""

    def __init__(self) -> None:
        self.recorded = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return work


def test_replayed_steps_are_the_steps() -> None:
    method = KD(decay_every=1)
    eager, graphed = rehearsal(method), rehearsal(method)
    graphs = Rerun()
    training = graphed.training
    training._graphed = GraphedStep(lambda b, p: training._update([b], 1, len(b), p), graphs)
    for epoch in range(3):
        for case in (eager, graphed):
            case.progress = replace(case.progress, epoch=epoch, epochs=3)
        for number, rows in enumerate(eager.job.order.epoch(epoch)):
            given = rows[:5] if number == 4 else rows  # a short batch in between
            one, other = eager.step(given, number), graphed.step(given, number)
            assert all(torch.equal(value, other[name]) for name, value in one.items()), (epoch, number)
    assert eager.job.order.steps > EAGER_STEPS + 2
    assert graphs.recorded == 3, "once for each epoch: weights that decay are constants of a graph"
    two = graphed.weights()
    assert all(torch.equal(value, two[key]) for key, value in eager.weights().items())


def test_numbers_of_a_replay_are_not_overwritten_by_the_next() -> None:
    def move(batch: Batch, _: Progress) -> dict[str, Tensor]:
        return {"sum": batch.inputs["first"].sum()}

    step = GraphedStep(move, Rerun())
    batches = [DATA.batch(torch.arange(start, start + 4)) for start in range(0, 40, 4)]
    found = [step(batch, Progress(0, 1, number, 10)) for number, batch in enumerate(batches)]
    for logs, batch in zip(found, batches, strict=True):
        assert torch.equal(logs["sum"], move(batch, Progress())["sum"])
    assert not torch.equal(found[-1]["sum"], found[-2]["sum"])


def test_work_that_cannot_be_recorded_says_why() -> None:
    class Refusing(Rerun):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing")

    step = GraphedStep(lambda b, p: {"loss": torch.zeros(())}, Refusing())
    batch = DATA.batch(torch.arange(4))
    for _ in range(EAGER_STEPS):
        step(batch, Progress())
    with raises(SettingError, "capturing", "cuda_graphs"):
        step(batch, Progress())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, and there is none")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_steps_are_the_steps(precision: str, tmp_path: Path) -> None:
    found = []
    for name, graphs in (("eager", False), ("graphed", True)):
        stage = Stage(method=Route(), epochs=3, batch_size=16, cuda_graphs=graphs, precision=precision, source="banked")
        run(toy_recipe(stage, data=DATA, device="cuda"), tmp_path / name)
        found.append(json.loads((tmp_path / name / "stages" / "00-route" / "outcome.json").read_text())["history"])
    for one, other in zip(*found, strict=True):
        assert one["student"] == pytest.approx(other["student"], rel=1e-3)


def test_switches_are_kept_with_the_recipe() -> None:
    stage = Stage(method=KD(), epochs=1, precision="bfloat16", compile=True, cuda_graphs=True)
    assert Stage.model_validate(json.loads(stage.model_dump_json())) == stage
    with raises(ValueError, "precision"):
        Stage(method=KD(), epochs=1, precision="half")


def test_graphs_are_refused_where_they_cannot_be() -> None:
    with raises(RecipeError, "cuda_graphs", "cpu"):
        rehearsal(cuda_graphs=True)
    case = rehearsal()
    stage = case.job.stage.model_copy(update={"cuda_graphs": True})
    assert graph_faults(stage, case.job.method, torch.device("cuda")) == []
    moved = stage.model_copy(update={"weighting": DotConfig()})
    assert "dot keeps momenta of its own" in graph_faults(moved, case.job.method, torch.device("cuda"))[0]
    drawing = stage.model_copy(update={"method": Translate(drop=0.5)})
    assert "leaves out other teachers" in graph_faults(drawing, case.job.method, torch.device("cuda"))[0]
    case.job.method.__class__ = type("Moving", (type(case.job.method),), {"after_step": lambda *_: None})
    assert "changes state in after_step" in graph_faults(stage, case.job.method, torch.device("cuda"))[0]


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"micro_batches": 2}, ("micro_batches", 1)),
        ({"weighting": "gradnorm"}, ("sum", "weighting")),
        ({"optimizer": {"schedule": "cosine"}}, ("constant",)),
        ({"precision": "float16"}, ("float32", "bfloat16")),
    ],
)
def test_graphs_and_what_changes_from_step_to_step(settings: dict[str, Any], facts: tuple[object, ...]) -> None:
    with raises(ValueError, "cuda_graphs", *facts):
        Stage.model_validate({"method": "kd", "epochs": 1, "cuda_graphs": True, **settings})


def plain_network() -> Network:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    network = Network(module, ("first",), taps=("1",))
    network.probe(DATA.example())
    return network


def test_whole_passes_are_compiled_and_taps_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compiled(module: nn.Module) -> Callable[..., Tensor]:
        def run_compiled(*args: Tensor) -> Tensor:
            calls.append(len(args[0]))
            return module(*args)

        return run_compiled

    monkeypatch.setattr(torch, "compile", compiled)
    network, batch = plain_network(), DATA.batch(torch.arange(5))
    names = list(network.state_dict())
    network.use_compiled(True)
    network(batch)
    network(batch, {Signal.LOGITS, Signal.feature("1")})
    network.cuts(batch, ["1"])
    assert calls == [5]
    assert list(network.state_dict()) == names
    network.use_compiled(False)
    network(batch)
    assert calls == [5]


def test_a_stage_compiles_what_runs_in_it_and_the_next_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: made.append(module) or module)
    case = rehearsal(compile=True)
    steps(case, 1)
    assert {id(module) for module in made} == {id(network.module) for network in case.plan.members.values()}
    made.clear()
    case = rehearsal()
    steps(case, 1)
    assert made == []


def test_a_network_that_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchRuntimeError

    def failing(*_: Tensor) -> Tensor:
        raise TorchRuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda _: failing)
    network = plain_network()
    network.use_compiled(True)
    with raises(SettingError, "C++", "compile"):
        network(DATA.batch(torch.arange(5)))
    network.use_compiled(False)
    with pytest.raises(ShapeError):
        network(replace(DATA.batch(torch.arange(5)), inputs={"first": torch.zeros(5, 3)}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_networks_give_the_same_numbers(tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("compiling on a CPU takes a C++ compiler, and there is none")
    found = []
    for name, compiled in (("plain", False), ("compiled", True)):
        torch.manual_seed(0)
        recipe = Recipe(
            data=DATA,
            student=plain_network(),
            student_name="student",
            stages=(Stage(method=Supervised(), epochs=2, batch_size=24, compile=compiled),),
        )
        report = run(recipe, tmp_path / name)
        found.append(json.loads((tmp_path / name / "stages" / "00-supervised" / "outcome.json").read_text())["history"])
        assert report.rows
    for one, other in zip(*found, strict=True):
        assert one["student"] == pytest.approx(other["student"], rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_kernel_makes_the_steps_of_many(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.01, momentum=0.0)
    fused = rehearsal(optimizer=settings)
    monkeypatch.setattr("crossdistill.training.optimizer.FUSED", ())
    plain = rehearsal(optimizer=settings)
    assert fused.training.optimizer.defaults["fused"]
    assert not plain.training.optimizer.defaults["fused"]
    for case in (fused, plain):
        steps(case, 4)
    for key, value in plain.weights().items():
        torch.testing.assert_close(fused.weights()[key], value, rtol=1e-5, atol=1e-6)


def test_momentum_of_weights_whose_gradients_come_late() -> None:
    """What is fused wants the momenta of all weights to begin in the same step."""
    case = rehearsal(optimizer=OptimizerConfig(name="sgd", learning_rate=0.01))
    early, *_, late = case.training.parameters
    optimizer = case.training.optimizer
    for given in ((early,), (early, late)):
        for parameter in given:
            parameter.grad = torch.ones_like(parameter)
        before = late.detach().clone()
        optimizer.step()
    torch.testing.assert_close(late, before - 0.01)


@pytest.mark.parametrize(
    ("stage", "factored"),
    [
        ({}, True),
        ({"clip_norm": 0.1}, True),
        ({"weighting": UncertaintyConfig()}, True),
        ({"micro_batches": 2}, False),
        ({"precision": "float16"}, False),
        ({"precision": "bfloat16"}, False),
        ({"optimizer": OptimizerConfig(name="sgd")}, False),
        ({"weighting": PCGradConfig()}, False),
    ],
)
def test_large_gradients_stay_in_factors_where_one_pass_gives_them(
    stage: dict[str, Any], factored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Specialise(taps={"teacher-0": ("hidden",)})
    settings = {"trains": "method", "optimizer": OptimizerConfig(learning_rate=0.01), **stage}
    plain, case = rehearsal(method, **settings), rehearsal(method, **settings)
    rows = case.rows()[:6]
    before = plain.weights()
    first = plain.step(rows)
    monkeypatch.setattr(factored_gradient, "LARGE_BYTES", 0)
    second = case.step(rows)
    assert any(isinstance(own.grad, FactoredGradient) for own in case.training.parameters) == factored
    assert float(second["gradient_norm"]) == pytest.approx(float(first["gradient_norm"]), rel=1e-4)
    for name, value in plain.weights().items():
        torch.testing.assert_close(case.weights()[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in plain.weights().items())
