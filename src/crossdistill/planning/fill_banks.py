"""Filling a recipe's banks without training: as far as its networks are final already."""

from pathlib import Path

from crossdistill.data.dataset import Dataset
from crossdistill.planning.attach_banks import supply
from crossdistill.planning.plan import prepare
from crossdistill.planning.sources import load_choices
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import load_outcome
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.progress import Display, Quiet


def prefill(
    recipe: Recipe,
    out: Path,
    *,
    share: Path | None = None,
    banks: Path | None = None,
    dataset: Dataset | None = None,
    display: Display | None = None,
) -> list[str]:
    """Fill the banks of every stage whose networks are final; gives the names of the stages that have to wait.

    A stage's networks are final when everything before it is trained: its outcome lies in the run's folder `out` or
    in `share`. Several processes may do this at the same time, and share the work. The folders are `run`'s.

    Raises:
        RecipeError: every fault of the recipe.
        BankError: a bank is damaged.
        StorageError: there is no room.
    """
    display = display or Quiet()
    with devices(recipe.device) as where:
        if dataset is None:
            dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
        plan = prepare(recipe, dataset, where.device, load_choices(out), where.ranks)
        folder = banks or (share or out) / "banks"
        for number, job in enumerate(plan.jobs):
            supply(job, recipe.bank, folder, where, display)
            modules = job.modules()
            done = load_outcome(out / "stages" / job.folder, modules, job.key)
            if done is None and share is not None and not job.unkeyed:
                done = load_outcome(share / job.key, modules, job.key)
            if done is None:
                waiting = [later.stage.name for later in plan.jobs[number + 1 :]]
                if waiting:
                    display.say(f"{', '.join(waiting)}: only when {job.stage.name} is trained, whose outcome they read")
                return waiting
    return []
