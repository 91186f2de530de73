"""Feasibility check of all cells before training: the stages of each cell, and the reasons why a cell cannot run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from crossdistill.compare.cell import loaded
from crossdistill.compare.grid import Cell, unplaced
from crossdistill.errors import CrossdistillError, RecipeError
from crossdistill.planning.plan import Plan, prepare
from crossdistill.recipe import Recipe
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.progress import Display


@dataclass(frozen=True, slots=True)
class Feasible:
    """A cell that can run: its stages by key, and its sizes for the table."""

    stages: Mapping[str, str]
    """Stage names, by the key under which runs share the stages."""
    steps: Mapping[str, int]
    """Optimizer steps, by the same key."""
    parameters: int
    """Number of parameters of the student."""
    trained: int
    """Number of parameters of student, teachers and method that train in any stage."""
    alone: tuple[str, ...]
    """Teachers that are trained from labels only."""


@dataclass(frozen=True, slots=True)
class Feasibility:
    """All cells of a comparison. By cell number: those that can run, and the reasons why the others cannot."""

    cells: tuple[Cell, ...]
    feasible: Mapping[int, Feasible]
    refused: Mapping[int, str]
    about: str

    def steps(self) -> dict[str, int]:
        """Optimizer steps of every stage of any cell, each stage once."""
        return {key: count for cell in self.feasible.values() for key, count in cell.steps.items()}

    def stages(self) -> list[Mapping[str, str]]:
        """The stages of each cell; empty for a cell that cannot run."""
        return [self.feasible[i].stages if i in self.feasible else {} for i in range(len(self.cells))]

    def refused_cells(self) -> dict[str, str]:
        """Reasons why cells cannot run, by cell name."""
        return {self.cells[i].name: reason for i, reason in self.refused.items()}


def check_feasibility(cells: Sequence[Cell], display: Display) -> Feasibility:
    """Build the plan of every cell. A faulty recipe excludes only its cell; faults of data and files are raised.

    Raises:
        RecipeError: no cell can run, or a setting names a stage that no cell has.
    """
    if cells and (faults := unplaced(cells)):
        raise RecipeError(f"compare {cells[0].data}", faults)
    feasible: dict[int, Feasible] = {}
    refused: dict[int, str] = {}
    about = ""
    several = len({cell.seed for cell in cells}) > 1
    display.begin("checking which cells can run", len(cells))
    for number, cell in enumerate(cells):
        try:
            recipe = cell.recipe()
        except CrossdistillError as error:
            refused[number] = reason(error)
            display.advance()
            continue
        if recipe.undrawn and several:
            refused[number] = (
                f"{', '.join(map(repr, recipe.undrawn))}: live modules have the same initial weights for every seed, "
                "so several seeds would understate the spread; pass functions that build the modules, or compare on "
                "one seed"
            )
            display.advance()
            continue
        dataset = loaded(recipe.data, display.data)
        about = about or dataset.about
        try:
            with devices(recipe.device) as where:
                feasible[number] = _feasible(prepare(recipe, dataset, where.device))
        except RecipeError as error:
            refused[number] = reason(error)
        display.advance()
    display.end(f"{len(feasible)} can run" + (f", {len(refused)} cannot" if refused else ""))
    if cells and not feasible:
        reasons = list(dict.fromkeys(refused.values()))
        raise RecipeError(f"compare {cells[0].data}", reasons)
    return Feasibility(tuple(cells), feasible, refused, about)


def reason(error: CrossdistillError) -> str:
    """The reason why a cell cannot run, on one line."""
    faults = error.faults if isinstance(error, RecipeError) else (str(error),)
    return "; ".join(" ".join(fault.split()) for fault in faults)


def _feasible(plan: Plan) -> Feasible:
    moving: dict[int, int] = {}
    for job in plan.jobs:
        for part in _moving(job.trained, job.method):
            moving |= {id(parameter): parameter.numel() for parameter in part.parameters()}
    return Feasible(
        stages={job.key: job.stage.name for job in plan.jobs},
        steps={job.key: job.stage.epochs * job.order.steps for job in plan.jobs},
        parameters=plan.parameters()[plan.recipe.learner],
        trained=sum(moving.values()),
        alone=alone(plan.recipe),
    )


def _moving(trained: Mapping[str, tuple[nn.Module, tuple[str, ...]]], method: nn.Module) -> list[nn.Module]:
    parts = [method]
    for network, taps in trained.values():
        parts += [network.get_submodule(f"module.{tap}") for tap in taps] or [network]
    return parts


def alone(recipe: Recipe) -> tuple[str, ...]:
    """Names of the teachers that train only in one supervised stage of their own."""
    names = []
    for name in recipe.teachers:
        stages = [stage for stage in recipe.stages if name in {part.partition(":")[0] for part in stage.trained}]
        if len(stages) == 1 and stages[0].learner == name and stages[0].method.name == "supervised":
            names.append(name)
    return tuple(names)
