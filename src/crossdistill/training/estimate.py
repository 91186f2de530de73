"""Estimate of a recipe: its stages and sizes, and time and memory projected from a few timed steps."""

import copy
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from crossdistill.data.dataset import Dataset
from crossdistill.method import Progress
from crossdistill.network import Network
from crossdistill.planning.plan import Job, Plan, prepare
from crossdistill.planning.sources import banked_rows
from crossdistill.recipe import Recipe
from crossdistill.runtime.distributed import Devices, devices
from crossdistill.runtime.progress import Display, counted
from crossdistill.training.runner import validate
from crossdistill.training.step import Training

TIMED_STEPS = 3
"""Enough for a projection; published figures need more."""


@dataclass(frozen=True, slots=True)
class StageForecast:
    """The estimate of one stage.

    `trains` is the number of trained parameters, `step_seconds` the quartiles of the timed steps in seconds, `seconds`
    the projected time and `peak_memory_mb` the peak memory in MB.
    """

    name: str
    method: str
    trains: int
    batch_size: int
    step_seconds: tuple[float, float, float]
    epochs: int
    steps: int
    seconds: float
    peak_memory_mb: float
    teachers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The estimate of a whole recipe; `members` maps each network to its number of parameters."""

    recipe: str
    student: str
    data: str
    members: dict[str, int]
    splits: dict[str, int]
    stages: tuple[StageForecast, ...]
    device: str
    bank_bytes: int
    timed_steps: int = TIMED_STEPS

    @property
    def seconds(self) -> float:
        """The projected time of all stages, in seconds."""
        return sum(stage.seconds for stage in self.stages)

    def text(self) -> str:
        """A table for the terminal."""
        members = ", ".join(f"{name} {size:,}" for name, size in self.members.items())
        splits = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        lines = [
            f"{self.recipe}: student {self.student!r} on {self.device}; nothing is trained or written",
            f"data {self.data}: {splits} rows",
            f"members (parameters): {members}",
            "",
            f"{'stage':<24}{'method':<14}{'trains':>12}{'batch':>7}{'epochs':>8}{'steps':>9}"
            f"  {'a step (quartiles)':>28}{'time':>10}{'memory':>10}  teachers",
        ]
        for stage in self.stages:
            lines.append(
                f"{stage.name:<24}{stage.method:<14}{stage.trains:>12,}{stage.batch_size:>7}{stage.epochs:>8}"
                f"{stage.steps:>9,}  {_quartiles(stage.step_seconds):>28}"
                f"{duration(stage.seconds):>10}{stage.peak_memory_mb:>7.0f} MB  {', '.join(stage.teachers) or '-'}"
            )
        lines += [
            "",
            f"projected: {duration(self.seconds)} in all, from {counted(self.timed_steps, 'timed step')} of each stage "
            "(median)",
        ]
        lines.append("memory: the peak of steps and validation, without loading, filling banks and the final test")
        size = f"{self.bank_bytes / 2**20:.1f} MB" if self.bank_bytes >= 2**20 else f"{self.bank_bytes / 2**10:.1f} kB"
        lines.append(f"outputs of frozen networks, if all are stored: {size}")
        return "\n".join(lines)


def _quartiles(seconds: tuple[float, ...]) -> str:
    """As text, in milliseconds, or in seconds from 10 s on."""
    factor, unit = (1000, "ms") if seconds[-1] < 10 else (1, "s")
    return " / ".join(f"{factor * value:.1f}" for value in seconds) + f" {unit}"


def forecast(recipe: Recipe, display: Display, timed_steps: int = TIMED_STEPS) -> Forecast:
    """Build all networks, time a few steps of each stage on copies of the weights, and project time and memory.

    Raises:
        RecipeError: lists every fault of the recipe, as `run` does.
    """
    with devices(recipe.device) as where:
        display.say("loading the data")
        dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
        plan = prepare(_with_copies(recipe), dataset, where.device, ranks=where.ranks)
        stages = tuple(forecast_stage(plan, job, where, timed_steps) for job in plan.jobs)
        splits = {name: len(rows) for name, rows in dataset.splits.items()}
        device = str(where.device)
    return Forecast(
        recipe.name,
        recipe.learner,
        dataset.name,
        plan.parameters(),
        splits,
        stages,
        device,
        _bank_bytes(plan),
        timed_steps,
    )


def forecast_stage(plan: Plan, job: Job, devices: Devices, timed_steps: int = TIMED_STEPS) -> StageForecast:
    """Time a few steps of one stage; they change the weights of the plan's networks."""
    training = Training(job, [*plan.members.values(), *(planned.method for planned in plan.jobs)], devices)
    order, epochs = job.order, job.stage.epochs
    devices.reset_peak()
    times = []
    every = itertools.chain.from_iterable(order.epoch(epoch) for epoch in itertools.count())
    # A stage of no epochs only measures over the data, which is not projected.
    for step, rows in enumerate(itertools.islice(every, timed_steps + 1 if epochs else 0)):
        began = time.perf_counter()
        training.step(rows, Progress(0, max(1, epochs), step, order.steps, devices.gather))
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    if epochs:
        validate(job, training, devices)
    validation = time.perf_counter() - began
    # The first step includes allocations and torch's lazy imports, so it is left out.
    later = times[1:] or [0.0]
    quartiles = statistics.quantiles(later, n=4) if len(later) > 1 else later * 3
    steady = quartiles[1]
    return StageForecast(
        job.stage.name,
        job.stage.method.name,
        _size(job.modules().values()),
        job.stage.batch_size,
        (quartiles[0], quartiles[1], quartiles[2]),
        epochs,
        epochs * order.steps,
        epochs * (order.steps * steady + validation),
        devices.peak_memory(),
        tuple(job.teachers),
    )


def _with_copies(recipe: Recipe) -> Recipe:
    """The recipe with copies of its live networks: timed steps must not change the caller's weights."""
    teachers = {n: copy.deepcopy(t) if isinstance(t, Network) else t for n, t in recipe.teachers.items()}
    student = copy.deepcopy(recipe.student) if isinstance(recipe.student, Network) else recipe.student
    return recipe.model_copy(update={"student": student, "teachers": teachers})


def _size(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def _bank_bytes(plan: Plan) -> int:
    """Size of the float32 logits of every teacher for every training and validation row."""
    rows = len(banked_rows(plan.dataset))
    numbers = 0
    for teacher in plan.teachers.values():
        size = 1
        for length in teacher.spec.logits or ():
            size *= length
        numbers += size
    return rows * numbers * 4


def duration(seconds: float) -> str:
    """A time as text, in seconds, minutes or hours by its size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
