"""Initial weights of the networks that a program made itself: kept in the run folder, so that it can be resumed.

A network out of the table of models, or of a factory, is initialised from the recipe's seed and can be made again at
any time. A live one was drawn by the user's program, which may draw others the next time it runs.
"""

import copy
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from crossdistill.data.dataset import Dataset
from crossdistill.errors import ResumeError, RunError, SettingError
from crossdistill.models.own_network import complete, draw, is_incomplete, shared_weights
from crossdistill.network import Network
from crossdistill.recipe import Recipe
from crossdistill.run_folder.folder import INITIAL, RECIPE
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.files import atomic_folder, read_sealed, write_sealed
from crossdistill.runtime.hashing import derived_seed, fingerprint
from crossdistill.runtime.tensor_file import load_weights, write_tensors

PRINTS = "fingerprints.json"


def begun(recipe: Recipe, dataset: Dataset, out: Path, devices: Devices, say: Callable[[str], None]) -> Recipe:
    """The recipe as this run began: live networks that train are copies, with the weights that they had then.

    The program's own networks so stay as they were, and a second run of the same recipe begins where this one did.
    Those that never train are used as they are; of them only a fingerprint is kept. Networks of factories are drawn
    from the recipe's seed, and so again the same where the run goes on.

    Raises:
        ResumeError: a live network that does not train has other weights than when the run began, or a factory draws
            others.
        SettingError: a factory fails, or a parameter that trains has a hook, which a copy does not have.
        ShapeError: a live network that trains has become another one.
    """
    given = _given(recipe)
    if not given:
        return recipe
    live = _complete(recipe, given, dataset)
    _say_what_is_not_meant(recipe, live, say)
    moving = set(recipe.undrawn)
    folder = out / INITIAL
    if devices.is_main and not (out / RECIPE).is_file():
        # Left by a run that could not begin.
        shutil.rmtree(folder, ignore_errors=True)
    if devices.is_main and not folder.is_dir():
        with atomic_folder(folder) as temporary:
            for name in sorted(moving):
                state = live[name].module.state_dict()
                weights = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
                write_tensors(temporary / f"{name}.safetensors", weights)
            write_sealed(temporary / PRINTS, {name: fingerprint(network) for name, network in live.items()})
    devices.wait()
    known = _known(folder, live)
    found: dict[str, Network] = {}
    for name, network in live.items():
        found[name] = network
        if name in moving:
            _refuse_gradient_hooks(name, network)
            found[name] = copy.deepcopy(network)
            file = folder / f"{name}.safetensors"
            load_weights(found[name].module, file, f"{name!r}")
            if fingerprint(found[name]) != known[name]:
                raise RunError(f"{file} is damaged: it is not what was written; {_ELSEWHERE}")
        elif fingerprint(network) != known[name]:
            cure = (
                "its factory has to draw from torch's, numpy's or Python's own random numbers alone"
                if network.factory is not None
                else "give it the same ones (load them, or seed before you build it, or give a function that makes it)"
            )
            raise ResumeError(
                f"{name!r} has other weights than when {out} was started; {cure}, or start anew in another folder"
            )
    return recipe.model_copy(update=_fields(recipe, found))


def _refuse_gradient_hooks(name: str, network: Network) -> None:
    hooked = [key for key, one in network.module.named_parameters() if one._backward_hooks]
    if hooked:
        raise SettingError(
            f"{name!r}: the parameter {hooked[0]!r} has a gradient hook, and torch copies parameters without their "
            "hooks. What trains here is a copy: remove the hook, and do in the module's forward what it does (or set "
            "requires_grad to False for what is not to train)"
        )


_ELSEWHERE = "without the first weights the run cannot be repeated; start anew in another folder"


def _known(folder: Path, names: Collection[str]) -> dict[str, str]:
    try:
        known = read_sealed(folder / PRINTS)
        if missing := sorted(set(names) - set(known)):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValueError as error:
        raise RunError(f"{folder / PRINTS} is damaged: {error}; {_ELSEWHERE}") from error
    return known


def _complete(recipe: Recipe, given: Mapping[str, Network], dataset: Dataset) -> dict[str, Network]:
    """Networks with all of their weights: drawn where they are factories, sized where their layers are lazy."""
    found: dict[str, Network] = {}
    for name, network in given.items():
        if network.factory is not None:
            found[name] = draw(network, recipe.seed, name)
        else:
            # The program's own stays without sizes.
            found[name] = copy.deepcopy(network) if is_incomplete(network) else network
    for pair in shared_weights(found):
        # A factory may give a part of another network: what trains must not be that one's.
        for name in pair:
            found[name] = copy.deepcopy(found[name]) if given[name].factory is not None else found[name]
    for name, network in found.items():
        complete(network, dataset.example(), derived_seed("member", recipe.seed, name))
    return found


def _say_what_is_not_meant(recipe: Recipe, live: Mapping[str, Network], say: Callable[[str], None]) -> None:
    moving = recipe.undrawn
    for (one, other), names in shared_weights(live).items():
        if {one, other} & set(moving):
            copied = " and ".join(repr(name) for name in (one, other) if name in moving)
            say(
                f"{one!r} and {other!r} share {len(names)} weights ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}). What trains here ({copied}) is a copy of its own: the two "
                "begin alike, and what one learns does not reach the other"
            )
    if recipe.seed and moving:
        say(
            f"seed {recipe.seed} does not draw the initial weights of {', '.join(map(repr, moving))}: they are modules "
            "of your program, and begin with the weights that they have. For other weights with each seed give a "
            "function that makes the module: Network(factory=function, reads=...)"
        )


def _given(recipe: Recipe) -> dict[str, Network]:
    members: Mapping[str, Any] = {recipe.learner: recipe.student, **recipe.teachers}
    return {name: network for name, network in members.items() if isinstance(network, Network)}


def _fields(recipe: Recipe, found: Mapping[str, Network]) -> dict[str, Any]:
    teachers = {name: found.get(name, given) for name, given in recipe.teachers.items()}
    return {"student": found.get(recipe.learner, recipe.student), "teachers": teachers}
