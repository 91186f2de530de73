"""Dry run of a comparison: its cells, shared stages, projected time, and the cells that cannot run."""

from collections import Counter
from collections.abc import Mapping

from crossdistill.compare.budget import Pick, Projection, project
from crossdistill.compare.executors.choose import local_workers, parse_executor
from crossdistill.compare.feasibility import Feasibility, check_feasibility
from crossdistill.compare.grid import Grid
from crossdistill.compare.run import fitted
from crossdistill.compare.sweep import Tuning, tunings
from crossdistill.runtime.progress import Terminal, counted
from crossdistill.training.estimate import duration


def dry_run_report(grid: Grid, jobs: int | None, on: str) -> str:
    """The text of a dry run, which trains and writes nothing.

    Raises:
        RecipeError: no cell can run, or a sweep names a field that no method has.
        RunError: even the smallest comparison exceeds the budget.
    """
    name, _ = parse_executor(on)
    workers = local_workers(jobs)
    picked: Pick | None = None
    with Terminal() as display:
        if grid.budget is not None:
            picked = fitted(grid, jobs, display)
            grid = grid.model_copy(update={"seeds": picked.seeds, "epochs": picked.epochs})
        feasibility = check_feasibility(grid.cells(), display)
        tuned = tunings(grid, [feasibility.cells[i] for i in feasibility.feasible])
        cells = [cell for tuning in tuned for trial in tuning.trials for cell in trial.cells]
        trials = check_feasibility(cells, display) if cells else None
        projection = project(feasibility, display)
        trial_projection = project(trials, display) if trials is not None else None
    lines = [
        f"{counted(len(feasibility.cells), 'cell')} on {counted(grid.seeds, 'seed')}; nothing is trained or written",
        "",
    ]
    lines += [*_cells(feasibility), "", *_sharing(projection)]
    lines += _tuning(tuned, trial_projection)
    seconds = projection.seconds(workers)
    seconds += trial_projection.seconds(workers) if trial_projection is not None else 0.0
    workers_text = (
        counted(workers, "worker")
        if name == "local"
        else f"{counted(workers, 'worker')} as fast as this machine ({name} may have more)"
    )
    lines.append(f"projected: {duration(seconds)} with {workers_text}, from a few timed steps of every stage")
    lines += [f"picked for {picked}"] if picked is not None else []
    lines += _refusals({**feasibility.refused_cells(), **grid.undefined()})
    return "\n".join(lines)


def _cells(feasibility: Feasibility) -> list[str]:
    """One line for each setting: its stages, each with the number of cells that share it."""
    users = Counter(key for feasible in feasibility.feasible.values() for key in feasible.stages)
    lines: dict[tuple[str, str, str], int] = {}
    for number, feasible in feasibility.feasible.items():
        setting = feasibility.cells[number].setting
        stages = [f"{name} (for {users[key]})" if users[key] > 1 else name for key, name in feasible.stages.items()]
        line = (setting.title, setting.place, ", ".join(stages))
        lines[line] = lines.get(line, 0) + 1
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return [
        f"{title:<{widths[0]}}  {where:<{widths[1]}}  {count:>2} x  {stages}"
        for (title, where, stages), count in lines.items()
    ]


def _sharing(projection: Projection) -> list[str]:
    needed = sum(len(keys) for keys in projection.cells)
    trained, separate = projection.shared(), projection.separate()
    part = f", {trained / separate:.0%} of the time without sharing" if separate else ""
    return [
        f"the cells need {needed} stages, of which {len(projection.stages)} are different and are trained: "
        f"{duration(trained)} on one worker{part}"
    ]


def _tuning(tuned: list[Tuning], projection: Projection | None) -> list[str]:
    if projection is None:
        return []
    lines = []
    for tuning in tuned:
        count = sum(len(trial.cells) for trial in tuning.trials)
        where = f"{tuning.setting.title}, {tuning.setting.place}"
        lacks = f"; has no {' and no '.join(tuning.missing)}, skipped" if tuning.missing else ""
        lines.append(f"  {where}: {counted(count, 'trial')}{lacks}")
    return ["", f"tuning on the validation split, {duration(projection.shared())} on one worker:", *lines, ""]


def _refusals(refused: Mapping[str, str]) -> list[str]:
    if not refused:
        return []
    return ["", "cannot apply:", *(f"  {name}: {why}" for name, why in refused.items())]
