"""The benchmarks' reference way gives the library's numbers, and their figures are measured and written as they say."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from crossdistill.plan import Plan, prepare

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
        # At the start everyone says nearly the same, and differences would be lost in rounding.
        for network in plan.members.values():
            [layer for layer in network.module.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(30)
        for mask in plan.jobs[1].method.masks.values():
            mask.fc.weight.mul_(10)
    order = torch.cat(list(plan.jobs[0].order.epoch(0)))
    train = bench.in_batches(data, order, 3, CPU)
    return plan, data, bench.reference_of(plan, CPU), train, bench.in_batches(data, data.splits["validation"], 4, CPU)


def own_steps(bench: Any, plan: Plan, stage: str, folder: Path) -> tuple[list[dict[str, float]], Any]:
    job = bench.job_of(plan, stage)
    course = bench.Course(plan, job, CPU, folder)
    course.close()
    logs = []
    for number, rows in enumerate(plan.jobs[0].order.epoch(0)):
        found = course.training.step(rows, bench.Progress(0, 1, number, job.order.steps))
        logs.append({name.removeprefix("raw/"): float(value) for name, value in found.items() if "raw/" in name})
    return logs, course


def assert_same_gradients(own: nn.Module, theirs: nn.Module, what: str) -> None:
    pairs = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in own.named_parameters():
        wanted = pairs[name].grad
        assert wanted is not None, f"{what}.{name}"
        assert parameter.grad is not None, f"{what}.{name}"
        largest = float(wanted.abs().max())
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3, atol=2e-4 * largest + 1e-9, msg=f"{what}.{name} has another gradient"
        )
        compared += 1
    assert compared == len(pairs) > 0


@pytest.mark.parametrize("student", ["image", "audio"])
def test_collaboration_is_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, _ = case(bench, student)
    reference.collaborate_epoch(train)
    logs, _ = own_steps(bench, plan, "collaborate", tmp_path)
    for own, theirs in zip(logs, reference.losses, strict=True):
        task = sum(value for name, value in own.items() if name.startswith("task"))
        assert task == pytest.approx(theirs["task"], rel=1e-4)
        assert sum(own.values()) - task == pytest.approx(theirs["peers"], rel=1e-3, abs=1e-6)
    members = {plan.recipe.learner: reference.student, **reference.teachers}
    for name, network in plan.members.items():
        assert_same_gradients(network.module, members[name].module, name)


@pytest.mark.parametrize("student", ["image", "audio"])
def test_masks_are_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, validation = case(bench, student)
    reference.specialise_epoch(train, validation)
    logs, course = own_steps(bench, plan, "specialise", tmp_path)
    for own, theirs in zip(logs, reference.losses, strict=True):
        assert {name.removeprefix("kl/"): value for name, value in own.items()} == pytest.approx(theirs, rel=1e-4)
    for worn in reference.masks:
        assert_same_gradients(course.job.method.mask(worn.teacher, worn.tap), worn.mask, worn.tap)
    judged = bench.validate(course.job, course.training, bench.Devices(CPU))
    assert judged["masks"] == pytest.approx(reference.best[0], rel=1e-4)
    stem = reference.teachers["mm"].module.audio.conv1
    assert stem.weight.grad is not None, "gradients of the frozen stem are computed, as the reference does"


@pytest.mark.parametrize("student", ["image", "audio"])
def test_routing_is_the_same(bench: Any, student: str, tmp_path: Path) -> None:
    plan, _, reference, train, validation = case(bench, student)
    reference.route_epoch(train, validation)
    logs, course = own_steps(bench, plan, "route", tmp_path)
    assert all("banked" in line for line in course.sources().split("; "))
    assert not course.job.reads - {student}
    for own, theirs in zip(logs, reference.losses, strict=True):
        assert own == pytest.approx(theirs, rel=1e-4, abs=1e-7)
    assert_same_gradients(plan.members[student].module, reference.student.module, student)
    assert_same_gradients(course.job.method.gate, reference.gate, "gate")
