"""Filling a recipe's banks without training, for networks whose weights are final."""

from pathlib import Path

from crossdistill.data.dataset import Dataset
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.plan import prepare
from crossdistill.planning.sources import load_choices
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import load_outcome
from crossdistill.run_folder.folder import run_folders
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.progress import Display, Quiet


def prefill(
    recipe: Recipe,
    out: Path | str,
    *,
    share: Path | str | None = None,
    banks: Path | str | None = None,
    dataset: Dataset | None = None,
    display: Display | None = None,
) -> list[str]:
    """Fill the banks of every stage whose networks are final; returns the names of the other stages.

    A stage's networks are final if all earlier stages are trained: their results are in the run's folder `out` or in
    `share`. Several processes may run this at the same time and share the work. The folders are those of `run`.

    Raises:
        RecipeError: the recipe has faults; lists all of them.
        BankError: a bank is damaged.
        StorageError: the disk has no room for a bank.
    """
    out, share, banks = run_folders(out, share, banks)
    display = display or Quiet()
    with devices(recipe.device) as placed:
        if dataset is None:
            dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
        plan = prepare(recipe, dataset, placed.device, load_choices(out), placed.ranks)
        for number, job in enumerate(plan.jobs):
            attach_banks(job, recipe.bank, banks, placed, display)
            modules = job.modules()
            done = load_outcome(out / "stages" / job.folder, modules, job.key)
            if done is None and share is not None and not job.unkeyed:
                done = load_outcome(share / job.key, modules, job.key)
            if done is None:
                waiting = [later.stage.name for later in plan.jobs[number + 1 :]]
                if waiting:
                    display.say(f"{', '.join(waiting)}: not filled: train {job.stage.name} first")
                return waiting
    return []
