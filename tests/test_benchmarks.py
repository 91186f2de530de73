"""The benchmarks' reference way gives the library's numbers, and their figures are measured and written as they say."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from crossdistill.nets import MaskNet1d
from crossdistill.planning.plan import Plan, prepare

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """Scripts import each other by their bare names, as Python does when one is run."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import sizes

        yield sizes
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def script(measure: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py", "--device", "cpu", *options])
    return measure.Script("benchmarks/some.py")


def test_two_sides_are_timed_in_turn(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import measure

    turns: list[str] = []
    measured = script(measure, monkeypatch).alternate([lambda: turns.append("a"), lambda: turns.append("b")], 3)
    assert "".join(turns) == "ab" + "abbaab", "one round to warm up, then forwards and backwards"
    assert [len(seconds) for seconds in measured] == [3, 3]
    assert "".join(turns[-2:]) == "ab"


def test_a_part_of_the_benchmarks_leaves_the_other_figures(bench: Any) -> None:
    import measure
    import run

    def figure(name: str, value: float, device: str = "cpu") -> Any:
        return measure.Figure(name, value, None, 0.0, device, "")

    old = [figure("a", 1.0), figure("b", 1.0, "cuda"), figure("b", 1.0)]
    merged = run.merged(old, [figure("b", 2.0), figure("c", 2.0)])
    assert merged == [*old[:2], figure("b", 2.0), figure("c", 2.0)]


def test_a_ratio_is_that_of_neighbours(bench: Any) -> None:
    import measure

    ratios = measure.ratios([1.0, 20.0, 3.0], [2.0, 10.0, 2.0])
    assert (ratios.values, ratios.median, ratios.spread) == ((0.5, 2.0, 1.5), 1.5, 0.75)
    assert measure.quartile_distance([1.0]) == 0


def test_figures_are_written_as_they_come(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import measure

    bench_script = script(
        measure, monkeypatch, "--out", str(tmp_path / "figures.json"), "--rounds", "2", "--clock", "processor"
    )
    bench_script.value("memory", 0.2, 0.1)
    bench_script.ratio("time", measure.ratios([1.0, 1.0], [2.0, 4.0]), 0.5)
    assert json.loads((tmp_path / "figures.json").read_text()) == [
        {"name": "memory", "value": 0.2, "limit": 0.1, "spread": 0.0, "device": "cpu", "command": bench_script.command},
        {
            "name": "time",
            "value": 0.375,
            "limit": 0.5,
            "spread": 0.125,
            "device": "cpu",
            "command": bench_script.command,
        },
    ]
    assert (bench_script.command, bench_script.rounds(9)) == (
        "python benchmarks/some.py --rounds 2 --clock processor",
        2,
    )
    assert "MISSED" in capsys.readouterr().out


def test_every_script_is_run(bench: Any) -> None:
    import run

    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "Script(__file__)" in path.read_text()}
    assert names == set(run.SCRIPTS)


def test_bytes_kept_for_backward_are_counted_once(bench: Any) -> None:
    import masknet

    layers = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Sigmoid())
    value = torch.randn(7, 3)
    weights = torch.randn(7, 5)
    assert masknet.saved_bytes(masknet.called, layers, value, weights) == 4 * (7 * 3 + 3 * 7 * 5)


def test_both_forms_of_the_mask_are_one_function(bench: Any) -> None:
    import masknet

    folded, plain = MaskNet1d(24, 12), bench.PlainMask(24, 12, 3, maps=False)
    plain.load_state_dict(folded.state_dict())
    value, weights = torch.randn(2, 6, 24)
    in_blocks, whole = masknet.by_block(folded, value, weights), masknet.called(plain, value, weights)
    torch.testing.assert_close(in_blocks(), whole())
    for mask, loss in ((folded, in_blocks), (plain, whole)):
        masknet.passes(mask, loss)()
    for left, right in zip(folded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6)
    kept = [
        masknet.saved_bytes(form, mask, value, weights)
        for form, mask in zip((masknet.by_block, masknet.called), (folded, plain), strict=True)
    ]
    # The tokens, and at least their place in a block.
    assert 4 * 6 * 24 * 12 < kept[0] < kept[1]


def case(bench: Any, student: str) -> tuple[Plan, Any, Any, list[Any], list[Any]]:
    """The published networks with narrow masks, both ways, with the same batches."""
    data = bench.random_data(6, 4)
    recipe = bench.av_mnist(student, 3, 10, CPU)
    narrow = tuple(
        stage.model_copy(update={"method": stage.method.model_copy(update={"width_factor": 20})})
        if stage.name == "specialise"
        else stage
        for stage in recipe.stages
    )
    plan = prepare(recipe.model_copy(update={"stages": narrow}), data, CPU)
    with torch.no_grad():
        # Untrained networks predict nearly the same, so that rounding would hide differences.
        for network in plan.members.values():
            [layer for layer in network.module.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(30)
        for mask in plan.jobs[1].method.masks.values():
            mask.fc.weight.mul_(10)
    order = torch.cat(list(plan.jobs[0].order.epoch(0)))
    train = bench.in_batches(data, order, 3, CPU)
    return plan, data, bench.reference_of(plan, CPU), train, bench.in_batches(data, data.splits["validation"], 4, CPU)


def library_steps(bench: Any, plan: Plan, stage: str, folder: Path) -> tuple[list[dict[str, float]], Any]:
    job = bench.job_of(plan, stage)
    course = bench.Course(plan, job, CPU, folder)
    course.close()
    logs = []
    for number, rows in enumerate(plan.jobs[0].order.epoch(0)):
        terms = course.training.step(rows, bench.Progress(0, 1, number, job.order.steps))
        logs.append({name.removeprefix("raw/"): float(value) for name, value in terms.items() if "raw/" in name})
    return logs, course


def assert_same_gradients(library: nn.Module, reference: nn.Module, what: str) -> None:
    pairs = dict(reference.named_parameters())
    compared = 0
    for name, parameter in library.named_parameters():
        wanted = pairs[name].grad
        assert wanted is not None, f"{what}.{name}"
        assert parameter.grad is not None, f"{what}.{name}"
        largest = float(wanted.abs().max())
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3, atol=2e-4 * largest + 1e-9, msg=f"{what}.{name} has another gradient"
        )
        compared += 1
    assert compared == len(pairs) > 0


@pytest.mark.parametrize(("stage", "weighed"), [("collaborate", False), ("specialise", True)])
def test_each_stage_is_measured_by_itself(
    bench: Any, stage: str, weighed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import both_ways
    import measure

    narrow = ("stages.specialise.method.width_factor=20",)
    both = both_ways.BothWays(script(measure, monkeypatch), "image", 6, 4, 3, ("library",), narrow)
    losses: Any = both.library(stage)()
    assert losses
    both.course(stage).close()
    assert (both.masks_mb > 0) == weighed


STUDENTS = ["image", pytest.param("audio", marks=pytest.mark.slow)]


@pytest.mark.parametrize("student", STUDENTS)
def test_collaboration_is_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, _ = case(bench, student)
    reference.collaborate_epoch(train)
    logs, _ = library_steps(bench, plan, "collaborate", tmp_path)
    for terms, wanted in zip(logs, reference.losses, strict=True):
        task = sum(value for name, value in terms.items() if name.startswith("task"))
        assert task == pytest.approx(wanted["task"], rel=1e-4)
        assert sum(terms.values()) - task == pytest.approx(wanted["peers"], rel=1e-3, abs=1e-6)
    members = {plan.recipe.learner: reference.student, **reference.teachers}
    for name, network in plan.members.items():
        assert_same_gradients(network.module, members[name].module, name)


@pytest.mark.parametrize("student", STUDENTS)
def test_masks_are_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, validation = case(bench, student)
    reference.specialise_epoch(train, validation)
    logs, course = library_steps(bench, plan, "specialise", tmp_path)
    for terms, wanted in zip(logs, reference.losses, strict=True):
        assert {name.removeprefix("kl/"): value for name, value in terms.items()} == pytest.approx(wanted, rel=1e-4)
    for applied in reference.masks:
        assert_same_gradients(course.job.method.mask(applied.teacher, applied.tap), applied.mask, applied.tap)
    losses = bench.validate(course.job, course.training, bench.Devices(CPU))
    assert losses["masks"] == pytest.approx(reference.best[0], rel=1e-4)
    stem = reference.teachers["mm"].module.audio.conv1
    assert stem.weight.grad is not None, "gradients of the frozen stem are computed, as the reference does"


@pytest.mark.parametrize("student", STUDENTS)
def test_routing_is_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, validation = case(bench, student)
    reference.route_epoch(train, validation)
    logs, course = library_steps(bench, plan, "route", tmp_path)
    assert all("banked" in line for line in course.sources().split("; "))
    assert not course.job.reads - {student}
    for terms, wanted in zip(logs, reference.losses, strict=True):
        assert terms == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert_same_gradients(plan.members[student].module, reference.student.module, student)
    assert_same_gradients(course.job.method.gate, reference.gate, "gate")
