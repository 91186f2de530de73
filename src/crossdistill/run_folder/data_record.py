"""The record of a run's data, so that a finished run is not shown as that of files which have changed since."""

from pathlib import Path

from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset
from crossdistill.errors import ResumeError
from crossdistill.recipe import Recipe
from crossdistill.run_folder.folder import RECIPE
from crossdistill.runtime.files import read_sealed, write_sealed

DATA = "data.json"


def record_data(out: Path, dataset: Dataset) -> None:
    """Write the fingerprint of a run's data at its start; a folder without a recipe holds no run yet."""
    if not (out / DATA).is_file() or not (out / RECIPE).is_file():
        write_sealed(out / DATA, {"name": dataset.name, "fingerprint": dataset.fingerprint})


def check_data(out: Path, recipe: Recipe, dataset: Dataset | None, progress: OnProgress) -> None:
    """Compare a user's own files with those of the run; other data cannot change between two starts.

    Raises:
        ResumeError: they have changed.
        DataError: they cannot be read any more.
    """
    path = out / DATA
    if isinstance(recipe.data, Dataset) or not recipe.data.of_files or not path.is_file():
        return
    try:
        before = read_sealed(path)["fingerprint"]
    except (ValueError, KeyError):
        # A damaged record says nothing; the results have a check of their own.
        return
    found = recipe.data.load(progress) if dataset is None else dataset
    if found.fingerprint != before:
        raise ResumeError(
            f"{out}: the files of data {found.name!r} are others than when this run was trained, so its results are "
            "not theirs; choose another folder with --out, or restore the files"
        )
