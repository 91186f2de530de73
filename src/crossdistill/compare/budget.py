"""Projected time of a grid from a few timed steps, and the seeds and epochs that fit into a budget of minutes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crossdistill.compare.cell import loaded
from crossdistill.compare.feasibility import Feasibility
from crossdistill.compare.grid import Cell, Grid
from crossdistill.errors import RunError
from crossdistill.overrides import sentences
from crossdistill.planning.plan import prepare
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.progress import Display, counted
from crossdistill.training.estimate import duration, forecast_stage

CELL_S = 1.0
"""Seconds of a cell besides training: reading and writing, the pass over the test split."""
START_S = 15.0
"""Seconds of a comparison besides its cells: importing torch in the workers, the bootstrap."""
FILLED = 0.8
"""Fraction of the budget that the projection may fill, as a margin for its error."""
MOST_SEEDS, ENOUGH_SEEDS = 5, 3
SHORTER = (0.75, 0.5, 0.35, 0.25)
SHORTEST = (0.25, 0.15, 0.1, 0.05)
"""Fractions of the usual epochs that are tried, in this order."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Projected time of one stage."""

    epoch_s: float
    epochs: int

    def seconds(self, part: float = 1.0) -> float:
        """Seconds for a fraction of the epochs, but at least one epoch."""
        return self.epoch_s * max(min(1, self.epochs), round(part * self.epochs))


@dataclass(frozen=True, slots=True)
class Projection:
    """Projected times of all stages of a grid, each stage once, and the stages of each cell."""

    stages: Mapping[str, Timed]
    cells: Sequence[tuple[str, ...]]
    """Stage keys of each cell."""

    def seconds(self, workers: int, part: float = 1.0) -> float:
        """Wall time with this number of workers: the work divided among them, but at least the longest cell."""
        work = sum(timed.seconds(part) for timed in self.stages.values()) + CELL_S * len(self.cells)
        return START_S + max(work / workers, max(self._alone(part), default=0.0))

    def shared(self) -> float:
        """Training time in seconds, each stage once."""
        return sum(timed.seconds() for timed in self.stages.values())

    def separate(self) -> float:
        """Training time in seconds if no cell shared a stage."""
        return sum(self._alone(1.0)) - CELL_S * len(self.cells)

    def _alone(self, part: float) -> Iterator[float]:
        return (sum(self.stages[key].seconds(part) for key in keys) + CELL_S for keys in self.cells)


def project(feasibility: Feasibility, display: Display) -> Projection:
    """Time a few steps of each kind of stage; the time does not depend on seeds and hidden labels."""
    kinds: dict[tuple[object, ...], Timed] = {}
    stages: dict[str, Timed] = {}
    display.begin("timing a few steps of every stage", len(feasibility.feasible))
    for number, feasible in feasibility.feasible.items():
        cell = feasibility.cells[number]
        missing = [
            name for key, name in feasible.stages.items() if _kind(cell, name) not in kinds and key not in stages
        ]
        if missing:
            for name, timed in _timed(cell, missing).items():
                kinds[_kind(cell, name)] = timed
        for key, name in feasible.stages.items():
            stages.setdefault(key, kinds.get(_kind(cell, name), Timed(0.0, 0)))
            kinds.setdefault(_kind(cell, name), stages[key])
        display.advance()
    projection = Projection(stages, [tuple(feasible.stages) for feasible in feasibility.feasible.values()])
    display.end(f"{len(stages)} stages, {duration(projection.shared())} of training on one worker")
    return projection


def _kind(cell: Cell, stage: str) -> tuple[object, ...]:
    return cell.method, cell.student, cell.teachers, cell.control, cell.settings, stage


def _timed(cell: Cell, names: Sequence[str]) -> dict[str, Timed]:
    import torch

    recipe = cell.recipe()
    threads = torch.get_num_threads()
    # In one thread, as in a worker.
    torch.set_num_threads(1)
    try:
        with devices(recipe.device) as where:
            plan = prepare(recipe, loaded(recipe.data), where.device)
            jobs = [job for job in plan.jobs if job.stage.name in names]
            forecasts = {job.stage.name: forecast_stage(plan, job, where) for job in jobs}
    finally:
        torch.set_num_threads(threads)
    return {name: Timed(each.seconds / max(1, each.epochs), each.epochs) for name, each in forecasts.items()}


@dataclass(frozen=True, slots=True)
class Pick:
    """Seeds and epochs that fit into a budget."""

    minutes: float
    seeds: int
    epochs: float
    projected_s: float

    def __str__(self) -> str:
        """The choice as one sentence for the display and the report."""
        part = "all their epochs" if self.epochs == 1 else f"{self.epochs:.0%} of their usual epochs"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"a budget of {self.minutes:g} minutes: {seeds}, every stage with {part}; projected "
            f"{duration(self.projected_s)}"
        )

    def as_data(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_data(cls, values: Mapping[str, Any]) -> "Pick":
        """A choice from the values of `as_data`.

        Raises:
            RunError: the values are damaged.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise RunError(f"the picked budget is damaged: {'; '.join(sentences(error))}") from error


def pick(grid: Grid, one_seed: Projection, trials: Projection | None, workers: int) -> Pick:
    """The most seeds, then epochs, that fit: first fewer seeds (down to three), then fewer epochs, then both.

    Raises:
        RunError: even one seed with the fewest epochs does not fit; states the projected time.
    """
    assert grid.budget is not None
    wanted = grid.seeds if "seeds" in grid.model_fields_set else MOST_SEEDS
    enough = min(ENOUGH_SEEDS, wanted)
    choices = [(seeds, 1.0) for seeds in range(wanted, enough - 1, -1)]
    choices += [(enough, part) for part in SHORTER]
    choices += [(seeds, SHORTEST[0]) for seeds in range(enough - 1, 0, -1)]
    choices += [(1, part) for part in SHORTEST[1:]]
    needed = 0.0
    for seeds, part in choices:
        # Every seed trains its own stages, so the times of seeds add up.
        needed = START_S + seeds * (one_seed.seconds(workers, part) - START_S)
        needed += trials.seconds(workers, part) if trials is not None else 0.0
        if needed <= FILLED * 60 * grid.budget:
            return Pick(grid.budget, seeds, part, needed)
    raise RunError(
        f"--budget {grid.budget:g}: one seed with {SHORTEST[-1]:.0%} of the epochs takes about {duration(needed)} on "
        f"{counted(workers, 'worker')}, and the projected time may be at most {FILLED:.0%} of the budget "
        f"({duration(FILLED * 60 * grid.budget)}); give more minutes or jobs, or compare fewer methods, students or "
        "label fractions"
    )
