"""Run the cells of a grid, which share equal stages, and tabulate their results."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from crossdistill.compare.budget import Pick, pick, project
from crossdistill.compare.cell import as_task, loaded, train
from crossdistill.compare.executors.choose import executor_for, local_workers, parse_executor
from crossdistill.compare.executors.in_process import InProcess
from crossdistill.compare.executors.local import Executor, Message
from crossdistill.compare.executors.messages import FOLDER as MESSAGES
from crossdistill.compare.executors.progress import GridProgress
from crossdistill.compare.feasibility import Feasibility, check_feasibility
from crossdistill.compare.grid import Cell, Grid, Setting, checked_grid, standard_methods
from crossdistill.compare.results.collect import collect
from crossdistill.compare.results.markdown import save
from crossdistill.compare.results.pairwise import PairedDifference, Samples, compare_pairwise, sample_numbers
from crossdistill.compare.results.table import Column, Findings, ResultTable
from crossdistill.compare.results.terminal import terminal
from crossdistill.compare.scheduler import Scheduler
from crossdistill.compare.sweep import Tuning, tunings, with_choices
from crossdistill.data.config import DataConfig
from crossdistill.errors import RecipeError, ResumeError, RunError
from crossdistill.recipes import is_own, setup_by_name
from crossdistill.recipes.own_files import is_file_data
from crossdistill.recipes.own_setup import LIVE, hold
from crossdistill.recipes.setup import ExperimentSetup, Kind
from crossdistill.report import Report, finished
from crossdistill.run_folder.folder import held, run_folder
from crossdistill.runtime.files import read_sealed, write_json, write_sealed
from crossdistill.runtime.hashing import key_hash
from crossdistill.runtime.progress import Terminal, counted

GROWS = ("methods", "students", "seeds", "labelled", "control")
"""Fields of a grid that may grow in the same folder, since existing cells stay unchanged."""
GRID, BUDGET, TUNING = "grid.json", "budget.json", "tuning.json"
CELLS, TRIALS, SHARED = "cells", "tuning", "shared"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished comparison: its folder and its results."""

    out: Path
    findings: Findings = field(repr=False)

    def __str__(self) -> str:
        """The table and the conclusions, as `print(compare(...))` shows them."""
        return self.text()

    @property
    def table(self) -> ResultTable:
        """The table: a line for each method, with an entry for each student and fraction of labels."""
        return ResultTable.of(self.findings)

    @property
    def pairs(self) -> tuple[PairedDifference, ...]:
        """Every method against the student alone and against KD, over the same seeds and test samples."""
        return self.findings.pairwise.pairs

    @property
    def best(self) -> dict[Column, str]:
        """The method with the highest mean accuracy, for each student and fraction of labels."""
        return {
            column: line.title
            for line in self.table.lines
            for column, entry in line.entries.items()
            if line.kind == "method" and entry.mark == "best"
        }

    def text(self) -> str:
        """The table as text for a terminal."""
        return terminal(self.findings)


def compare(
    grid: Grid, out: Path | str, *, jobs: int | None = None, resume: bool = False, on: str = "local"
) -> Comparison:
    """Run all unfinished cells with `jobs` workers (default: as many as the executor `on` offers).

    Cells share a folder of stages: equal stages are trained once. A failed cell is reported in the table and does not
    stop the others. A comparison that was killed continues with `resume`, without repeating finished cells.

    Raises:
        RecipeError: no cell can run, or a sweep names a field that no method has; nothing was trained.
        RunError: the folder holds a comparison and `resume` is False, or another process is running it.
        ResumeError: the folder holds another comparison.
    """
    parse_executor(on)
    out = run_folder(out)
    with held(out):
        _check(out, grid, resume)
        requested = grid
        with Terminal() as display:
            picked = _picked(grid, out, jobs, display)
            if picked is not None:
                grid = grid.model_copy(update={"seeds": picked.seeds, "epochs": picked.epochs})
            feasibility = check_feasibility(grid.cells(), display)
            tuned = tunings(grid, [feasibility.cells[i] for i in feasibility.feasible])
        # The grid is written only now, after all its checks have passed.
        write_sealed(out / GRID, _plain(requested))
        if picked is not None:
            write_sealed(out / BUDGET, picked.as_data())
        run = _Run(out, jobs, on)
        tuning, choices, untuned = run.tune(tuned)
        if any(choices.values()):
            with Terminal() as display:
                feasibility = check_feasibility(with_choices(feasibility.cells, choices), display)
        untuned_cells = {cell.name: untuned[cell.setting] for cell in feasibility.cells if cell.setting in untuned}
        failed = run.cells(feasibility, CELLS, "test", skip=set(untuned_cells))
        collected = collect(feasibility, out / CELLS)
        findings = Findings(
            grid=grid,
            cells=feasibility.cells,
            collected=collected,
            pairwise=compare_pairwise(collected, _samples(feasibility)),
            refused={**feasibility.refused_cells(), **grid.undefined()},
            failed={**untuned_cells, **failed},
            about=feasibility.about,
            tuning=tuning,
            pick=picked,
            split_moves=_split_moves(tuned),
        )
        save(findings, out)
        shutil.rmtree(out / MESSAGES, ignore_errors=True)
    return Comparison(out, findings)


def compare_setup(
    setup: ExperimentSetup,
    methods: Sequence[str] | str = ("supervised", "kd", "mst-distill"),
    *,
    out: Path | str | None = None,
    seeds: int = 3,
    students: Sequence[str] = (),
    teachers: Sequence[Kind] = (),
    labelled: Sequence[float] = (1.0,),
    control: Literal["shuffled"] | None = None,
    settings: Sequence[str] = (),
    sweep: Sequence[str] = (),
    budget: float | None = None,
    tiny: bool = False,
    resume: bool = False,
) -> Comparison:
    """The comparison of methods on a program's own data and networks: `crossdistill.compare(setup, ...)`.

    The cells run one after another in this process, since no other process can build the objects of this one. With
    several worker processes: `crossdistill compare FILE.py:FUNCTION`, whose function returns the setup.

    Args:
        setup: data, networks and lengths of training.
        methods: names of `list_methods()` and of presets; "all" are all of them.
        out: the folder of the comparison (default: `runs/compare-NAME`, with the name of the data).
        seeds: number of seeds.
        students: modalities of the students (default: all).
        teachers: kinds of teachers (default: each method's own).
        labelled: fractions of the training labels, in (0, 1].
        control: "shuffled": every method also with shuffled inputs of its teachers.
        settings: `a.b=c` for every recipe.
        sweep: `FIELD=a,b,c`: fields to tune on validation, with the same number of trials for every method.
        budget: minutes for the whole comparison; seeds and epochs are picked to fit.
        tiny: a short form, which shows that everything runs.
        resume: continue the comparison in `out`.

    Raises:
        RecipeError: a value is invalid, or no cell can run; lists all faults.
        RunError: the folder holds a comparison and `resume` is False, or another process is running it.
        ResumeError: the folder holds another comparison.
    """
    name = hold(setup)
    names = [methods] if isinstance(methods, str) else methods
    spread = [other for method in names for other in (standard_methods() if method == "all" else (method,))]
    values = {"students": students, "teachers": teachers, "labelled": labelled, "settings": settings, "sweep": sweep}
    grid = checked_grid(
        {
            "data": name,
            "methods": tuple(dict.fromkeys(spread)),
            "seeds": seeds,
            "control": control,
            "budget": budget,
            "tiny": tiny,
            **{field: tuple(value) for field, value in values.items()},
        }
    )
    folder = Path(out) if out is not None else Path("runs") / f"compare-{setup.data.name}"
    return compare(grid, folder, resume=resume)


def _check(out: Path, grid: Grid, resume: bool) -> None:
    """Check that the folder is free, or holds this comparison or a part of it."""
    path = out / GRID
    if not path.is_file():
        return
    if not resume:
        raise RunError(
            f"{out} holds a comparison already; continue it with --resume, or choose another folder with --out"
        )
    then, now = _read(path), _plain(grid)
    # A budget's seeds and epochs were picked for the original grid, which therefore cannot grow.
    grows = GROWS if grid.budget is None else ()
    changed = [
        f"  - {name}: was {then.get(name)!r}, is {now[name]!r}"
        for name in now
        if not (_same(name, then.get(name), now[name]) or (name in grows and _more(then.get(name), now[name])))
    ]
    if changed:
        raise ResumeError(
            f"{out} holds a comparison with other values. In one folder only {', '.join(GROWS)} may grow, and none of "
            "them with a budget. Choose another folder with --out, or give the earlier values. Changed:\n"
            + "\n".join(changed)
        )


def _plain(grid: Grid) -> dict[str, Any]:
    """A grid as plain values; of a user's own data, with a hash of the data and the setup, which their name is not."""
    values: dict[str, Any] = json.loads(grid.model_dump_json())
    if not (is_own(grid.data) or is_file_data(grid.data)):
        return values
    setup = setup_by_name(grid.data, grid.settings)
    return {**values, "content": key_hash([loaded(setup.data).fingerprint, setup.plain()])}


def _same(name: str, then: Any, now: Any) -> bool:
    """Whether two values of a field are equal; settings in any order, the last one of a key counts."""
    if name == "settings" and isinstance(then, list):
        was, is_ = ({text.partition("=")[0]: text.partition("=")[2] for text in each} for each in (then, now))
        return was == is_
    return bool(then == now)


def _more(then: Any, now: Any) -> bool:
    """Whether the new value of a field includes the old one."""
    if isinstance(then, list):
        return set(then) <= set(now)
    return then is None or (isinstance(then, int) and now >= then)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; choose another folder with --out") from error


def _picked(grid: Grid, out: Path, jobs: int | None, display: Terminal) -> Pick | None:
    """The seeds and epochs that fit the budget; a resumed comparison keeps them and measures no times."""
    if grid.budget is None:
        return None
    path = out / BUDGET
    picked = Pick.from_data(_read(path)) if path.is_file() else fitted(grid, jobs, display)
    display.say(f"{picked}")
    return picked


def fitted(grid: Grid, jobs: int | None, display: Terminal) -> Pick:
    """The seeds and epochs that fit into a grid's budget.

    Raises:
        RunError: even the smallest comparison does not fit.
    """
    feasibility = check_feasibility(grid.model_copy(update={"seeds": 1}).cells(), display)
    projection = project(feasibility, display)
    tuned = tunings(grid, [feasibility.cells[i] for i in feasibility.feasible])
    cells = [cell for tuning in tuned for trial in tuning.trials for cell in trial.cells]
    trials = project(check_feasibility(cells, display), display) if cells else None
    return pick(grid, projection, trials, local_workers(jobs))


@dataclass(frozen=True, slots=True)
class _Run:
    """Runs cells in a comparison's folder, on the workers of one executor."""

    out: Path
    jobs: int | None
    on: str

    def cells(self, feasibility: Feasibility, folder: str, split: str, skip: set[str]) -> dict[str, str]:
        """Run all unfinished cells; returns the reasons of those that failed, by cell name."""
        out = self.out.absolute()
        cells = feasibility.cells
        todo = [i for i in feasibility.feasible if cells[i].name not in skip]
        waiting = [i for i in todo if not finished(out / folder / cells[i].name)]
        scheduler = Scheduler(feasibility.stages(), waiting, out / SHARED)
        tasks = [as_task(cell, out / folder / cell.name, out / SHARED, split) for cell in cells]
        steps_of = {key: count for i in waiting for key, count in feasibility.feasible[i].steps.items()}
        steps = sum(count for key, count in steps_of.items() if not scheduler.done(key))
        failed: dict[str, str] = {}
        if not waiting:
            return failed
        workers: Executor
        if cells[waiting[0]].data.startswith(LIVE):
            workers, count = InProcess(train), 1
        else:
            workers, count = executor_for(self.on, train, self.jobs, len(waiting), out)
        title = "cells" if split == "test" else "trials"
        with GridProgress(steps, len(waiting), title) as progress:
            progress.say(
                f"{len(cells)} {title}, {len(todo) - len(waiting)} done already, "
                f"{counted(count, 'worker')} on {self.on}"
            )
            for message in workers.run(tasks, scheduler.choose):
                _follow(message, scheduler, cells, failed, progress)
        return failed

    def tune(
        self, tuned: Sequence[Tuning]
    ) -> tuple[list[dict[str, Any]], dict[Setting, tuple[str, ...]], dict[Setting, str]]:
        """Run all trials; returns them as plain values, the chosen settings, and the reasons where none were chosen."""
        plain: list[dict[str, Any]] = []
        choices: dict[Setting, tuple[str, ...]] = {}
        untuned: dict[Setting, str] = {}
        failed: Mapping[str, str] = {}
        trials = [cell for tuning in tuned for trial in tuning.trials for cell in trial.cells]
        if trials:
            with Terminal() as display:
                feasibility = check_feasibility(trials, display)
            failed = {**feasibility.refused_cells(), **self.cells(feasibility, TRIALS, "validation", skip=set())}
        for tuning in tuned:
            if not any(trial.settings for trial in tuning.trials) and not tuning.missing:
                continue
            try:
                best, scores = tuning.chosen(self._score)
            except RecipeError as error:
                names = [cell.name for trial in tuning.trials for cell in trial.cells if cell.name in failed]
                why = "; ".join(f"{name}: {failed[name]}" for name in names[:1])
                untuned[tuning.setting] = f"{error.faults[0]} ({why})"
                continue
            choices[tuning.setting] = best.settings
            plain.append(tuning.as_data(best, scores))
        if plain:
            write_json(self.out / TUNING, plain)
        return plain, choices, untuned

    def _score(self, cell: Cell) -> float | None:
        folder = self.out / TRIALS / cell.name
        return Report.load(folder).rows[-1].mean if finished(folder) else None


def _follow(
    message: Message, scheduler: Scheduler, cells: Sequence[Cell], failed: dict[str, str], progress: GridProgress
) -> None:
    name = cells[message.task].name
    if message.kind in {"done", "failed"}:
        succeeded = message.kind == "done"
        scheduler.ended(message.task, succeeded=succeeded)
        if not succeeded:
            failed[name] = str(message.value)
        progress.ended(message.worker, name, str(message.value), succeeded=succeeded)
        return
    if message.kind == "trained":
        scheduler.trained(message.task, str(message.value))
    progress.show(message.worker, name, message.kind, message.value)


def _split_moves(tuned: Sequence[Tuning]) -> bool:
    """Whether the seed changes the data, judged by the data configurations of a trial for two seeds."""
    cells = [cell for tuning in tuned for trial in tuning.trials for cell in trial.cells]
    if not cells:
        return False
    configs = [replace(cells[0], seed=seed).recipe().data for seed in (0, cells[0].seed)]
    return len({config.seed for config in configs if isinstance(config, DataConfig)}) > 1


def _samples(feasibility: Feasibility) -> Samples:
    """A function that numbers test samples by the student's input, computed once for each student and seed."""
    known: dict[tuple[str, int], Any] = {}

    def samples(student: str, seed: int, ids: Any) -> Any:
        key = (student, seed)
        if key not in known or not (len(known[key][0]) == len(ids) and (known[key][0] == ids).all()):
            cell = next(feasibility.cells[i] for i in feasibility.feasible if _is(feasibility.cells[i], student, seed))
            recipe = cell.recipe()
            known[key] = ids, sample_numbers(loaded(recipe.data), recipe.reads, ids)
        return known[key][1]

    return samples


def _is(cell: Cell, student: str, seed: int) -> bool:
    return (cell.student, cell.seed) == (student, seed)
