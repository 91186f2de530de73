"""Dry run of a comparison: its cells, shared stages, projected time, and the cells that cannot run."""

from collections import Counter
from collections.abc import Mapping

from crossdistill.compare.budget import Pick, Projection, project
from crossdistill.compare.executors.choose import local_workers, place
from crossdistill.compare.feasibility import Feasibility, survey
from crossdistill.compare.grid import Grid
from crossdistill.compare.run import fitted
from crossdistill.compare.sweep import Tuning, tunings
from crossdistill.runtime.progress import Terminal, counted
from crossdistill.training.estimate import duration


def outline(grid: Grid, jobs: int | None, on: str) -> str:
    """The text of a dry run; nothing is trained or written.

    Raises:
        RecipeError: no cell can run, or a sweep names a field that no method has.
        RunError: even the smallest comparison exceeds the budget.
    """
    name, _ = place(on)
    workers = local_workers(jobs)
    picked: Pick | None = None
    with Terminal() as display:
        if grid.budget is not None:
            picked = fitted(grid, jobs, display)
            grid = grid.model_copy(update={"seeds": picked.seeds, "epochs": picked.epochs})
        looked = survey(grid.cells(), display)
        tuned = tunings(grid, [looked.cells[i] for i in looked.found])
        cells = [cell for tuning in tuned for trial in tuning.trials for cell in trial.cells]
        trials = survey(cells, display) if cells else None
        projection = project(looked, display)
        extra = project(trials, display) if trials is not None else None
    lines = [
        f"{counted(len(looked.cells), 'cell')} on {counted(grid.seeds, 'seed')}; nothing is trained or written",
        "",
    ]
    lines += [*_cells(looked), "", *_sharing(projection)]
    lines += _tuning(tuned, extra)
    seconds = projection.seconds(workers) + (extra.seconds(workers) if extra is not None else 0.0)
    here = (
        counted(workers, "worker")
        if name == "local"
        else f"{counted(workers, 'worker')} as fast as this machine ({name} may have more)"
    )
    lines.append(f"projected: {duration(seconds)} with {here}, from a few timed steps of every stage")
    lines += [f"picked for {picked}"] if picked is not None else []
    lines += _refusals({**looked.refused_cells(), **grid.undefined()})
    return "\n".join(lines)


def _cells(looked: Feasibility) -> list[str]:
    """One line for each setting: its stages, each with the number of cells that share it."""
    users = Counter(key for one in looked.found.values() for key in one.stages)
    lines: dict[tuple[str, str, str], int] = {}
    for number, one in looked.found.items():
        setting = looked.cells[number].setting
        stages = [f"{name} (for {users[key]})" if users[key] > 1 else name for key, name in one.stages.items()]
        line = (setting.title, setting.place, ", ".join(stages))
        lines[line] = lines.get(line, 0) + 1
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return [
        f"{title:<{widths[0]}}  {where:<{widths[1]}}  {count:>2} x  {stages}"
        for (title, where, stages), count in lines.items()
    ]


def _sharing(projection: Projection) -> list[str]:
    asked = sum(len(keys) for keys in projection.cells)
    trained, separate = projection.shared(), projection.separate()
    part = f", {trained / separate:.0%} of what the cells take one by one" if separate else ""
    return [
        f"{asked} stages are asked for, {len(projection.stages)} are trained: {duration(trained)} on one worker{part}"
    ]


def _tuning(tuned: list[Tuning], extra: Projection | None) -> list[str]:
    if extra is None:
        return []
    lines = []
    for tuning in tuned:
        count = sum(len(trial.cells) for trial in tuning.trials)
        where = f"{tuning.setting.title}, {tuning.setting.place}"
        lacks = f"; has no {' and no '.join(tuning.missing)}, skipped" if tuning.missing else ""
        lines.append(f"  {where}: {counted(count, 'trial')}{lacks}")
    return ["", f"tuning on the validation split, {duration(extra.shared())} on one worker:", *lines, ""]


def _refusals(refused: Mapping[str, str]) -> list[str]:
    if not refused:
        return []
    return ["", "cannot apply:", *(f"  {name}: {why}" for name, why in refused.items())]
