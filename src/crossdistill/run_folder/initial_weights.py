"""Initial weights of live networks, stored in the run folder so that the run can be resumed.

Networks of the table of models and of factories are initialised from the recipe's seed, so they can be built again. The
weights of a live network were drawn by the user's program, which may draw others the next time.
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


def with_initial_weights(
    recipe: Recipe, dataset: Dataset, out: Path, devices: Devices, say: Callable[[str], None]
) -> Recipe:
    """The recipe with copies of the live networks that train, with the weights of the start of this run.

    The program's networks keep their weights, so a second run of the same recipe starts from the same ones. Live
    networks that never train are not copied; only their fingerprint is stored. Networks of factories are drawn from the
    recipe's seed.

    Raises:
        ResumeError: a live network that does not train has other weights than at the start of the run, or a factory
            draws other weights.
        SettingError: a factory fails, or a parameter that trains has a hook, which torch does not copy.
        ShapeError: a live network that trains has other layers than at the start.
    """
    members = _live_members(recipe)
    if not members:
        return recipe
    live = _complete(recipe, members, dataset)
    _warn_of_shared_and_undrawn(recipe, live, say)
    moving = set(recipe.undrawn)
    folder = out / INITIAL
    if devices.is_main and not (out / RECIPE).is_file():
        # Left by a run that did not start.
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
    networks: dict[str, Network] = {}
    for name, network in live.items():
        networks[name] = network
        if name in moving:
            _refuse_gradient_hooks(name, network)
            networks[name] = copy.deepcopy(network)
            file = folder / f"{name}.safetensors"
            load_weights(networks[name].module, file, f"{name!r}")
            if fingerprint(networks[name]) != known[name]:
                raise RunError(f"{file} is damaged: its weights do not match their hash; {_ELSEWHERE}")
        elif fingerprint(network) != known[name]:
            cure = (
                "its factory may use the random numbers of torch, numpy and Python only"
                if network.factory is not None
                else "give it the same ones: load them, set a seed before it is built, or use Network(factory=...)"
            )
            raise ResumeError(
                f"{name!r} has other weights than when {out} was started; {cure}, or start anew in another folder"
            )
    return recipe.model_copy(update=_fields(recipe, networks))


def _refuse_gradient_hooks(name: str, network: Network) -> None:
    hooked = [key for key, parameter in network.module.named_parameters() if parameter._backward_hooks]
    if hooked:
        raise SettingError(
            f"{name!r}: the parameter {hooked[0]!r} has a gradient hook. A run trains a copy of the network, and torch "
            "copies parameters without their hooks. Remove the hook and do its work in the module's forward, or freeze "
            "the parameter (requires_grad=False)"
        )


_ELSEWHERE = "without the initial weights the run cannot be resumed; start anew in another folder"


def _known(folder: Path, names: Collection[str]) -> dict[str, str]:
    try:
        known = read_sealed(folder / PRINTS)
        if missing := sorted(set(names) - set(known)):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValueError as error:
        raise RunError(f"{folder / PRINTS} is damaged: {error}; {_ELSEWHERE}") from error
    return known


def _complete(recipe: Recipe, members: Mapping[str, Network], dataset: Dataset) -> dict[str, Network]:
    """Networks with all of their weights: factories are called, and lazy layers get their sizes."""
    networks: dict[str, Network] = {}
    for name, network in members.items():
        if network.factory is not None:
            networks[name] = draw(network, recipe.seed, name)
        else:
            # The program's network keeps its lazy layers.
            networks[name] = copy.deepcopy(network) if is_incomplete(network) else network
    for pair in shared_weights(networks):
        # A factory may return a part of another network, whose weights must not train.
        for name in pair:
            networks[name] = copy.deepcopy(networks[name]) if members[name].factory is not None else networks[name]
    for name, network in networks.items():
        complete(network, dataset.example(), derived_seed("member", recipe.seed, name))
    return networks


def _warn_of_shared_and_undrawn(recipe: Recipe, live: Mapping[str, Network], say: Callable[[str], None]) -> None:
    moving = recipe.undrawn
    for pair, names in shared_weights(live).items():
        if trained := [repr(name) for name in pair if name in moving]:
            say(
                f"{pair[0]!r} and {pair[1]!r} share {len(names)} weights ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}). The run trains a separate copy of {' and of '.join(trained)}: "
                "both networks start from the same weights, and training one does not change the other"
            )
    if recipe.seed and moving:
        say(
            f"seed {recipe.seed} does not change the initial weights of {', '.join(map(repr, moving))}: they are "
            "modules of your program, which start with the weights that they have. For other weights with each seed, "
            "pass a function that makes the module: Network(factory=function, reads=...)"
        )


def _live_members(recipe: Recipe) -> dict[str, Network]:
    members: Mapping[str, Any] = {recipe.learner: recipe.student, **recipe.teachers}
    return {name: network for name, network in members.items() if isinstance(network, Network)}


def _fields(recipe: Recipe, networks: Mapping[str, Network]) -> dict[str, Any]:
    teachers = {name: networks.get(name, teacher) for name, teacher in recipe.teachers.items()}
    return {"student": networks.get(recipe.learner, recipe.student), "teachers": teachers}
