"""Initial weights of the networks that a program made itself: kept in the run folder, so that it can be resumed.

A network out of the table of models is initialised from the recipe's seed and can be made again at any time. A live one
was drawn by somebody's program, which may draw others the next time it runs.
"""

import copy
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crossdistill.claim import INITIAL, RECIPE
from crossdistill.devices import Devices
from crossdistill.errors import ResumeError, RunError
from crossdistill.fingerprint import fingerprint
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.recipe import Recipe
from crossdistill.storage import atomic_folder, read_sealed, write_sealed
from crossdistill.tensor_file import load_weights, write_tensors

PRINTS = "fingerprints.json"


def begun(recipe: Recipe, out: Path, where: Devices) -> Recipe:
    """The recipe as this run began: live networks that train are copies, with the weights that they had then.

    The program's own networks so stay as they were, and a second run of the same recipe begins where this one did.
    Those that never train are used as they are; of them only a fingerprint is kept.

    Raises:
        ResumeError: a live network that does not train has other weights than when the run began.
        ShapeError: a live network that trains has become another one.
    """
    live = _live(recipe)
    if not live:
        return recipe
    moving = _moving(recipe)
    folder = out / INITIAL
    if where.is_main and not (out / RECIPE).is_file():
        # Left by a run that could not begin.
        shutil.rmtree(folder, ignore_errors=True)
    if where.is_main and not folder.is_dir():
        with atomic_folder(folder) as temporary:
            for name in sorted(moving & set(live)):
                state = live[name].module.state_dict()
                weights = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
                write_tensors(temporary / f"{name}.safetensors", weights)
            write_sealed(temporary / PRINTS, {name: fingerprint(network) for name, network in live.items()})
    where.wait()
    known = _known(folder, live)
    found: dict[str, Network] = {}
    for name, network in live.items():
        found[name] = network
        if name in moving:
            found[name] = copy.deepcopy(network)
            file = folder / f"{name}.safetensors"
            load_weights(found[name].module, file, f"{name!r}")
            if fingerprint(found[name]) != known[name]:
                raise RunError(f"{file} is damaged: it is not what was written; {_ELSEWHERE}")
        elif fingerprint(network) != known[name]:
            raise ResumeError(
                f"{name!r} has other weights than when {out} was started; give it the same ones (load them, or seed "
                "before you build it), or start anew in another folder"
            )
    return recipe.model_copy(update=_fields(recipe, found))


_ELSEWHERE = "without the first weights the run cannot be repeated; start anew in another folder"


def _known(folder: Path, names: Collection[str]) -> dict[str, str]:
    try:
        known = read_sealed(folder / PRINTS)
        if missing := sorted(set(names) - set(known)):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValueError as error:
        raise RunError(f"{folder / PRINTS} is damaged: {error}; {_ELSEWHERE}") from error
    return known


def _live(recipe: Recipe) -> dict[str, Network]:
    members: Mapping[str, Any] = {recipe.learner: recipe.student, **recipe.teachers}
    return {name: network for name, network in members.items() if isinstance(network, Network)}


def _moving(recipe: Recipe) -> set[str]:
    """Members that train, all of them or at a tap, in any stage."""
    parts = (p for s in recipe.stages for p in s.trained_with(recipe.teachers if s.teachers is None else s.teachers))
    named = {part.partition(":")[0] for part in parts}
    return {recipe.learner if name == STUDENT else name for name in named}


def _fields(recipe: Recipe, found: Mapping[str, Network]) -> dict[str, Any]:
    teachers = {name: found.get(name, given) for name, given in recipe.teachers.items()}
    return {"student": found.get(recipe.learner, recipe.student), "teachers": teachers}
