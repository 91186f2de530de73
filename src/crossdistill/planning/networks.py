"""Builds the networks of a recipe for its data, and adds to the data the renderings that they read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crossdistill.backends.names import RUN, Built, backend_of, build
from crossdistill.backends.tune import tune
from crossdistill.data.augmentation import Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendered import rendered
from crossdistill.errors import CrossdistillError, RecipeError, SettingError, nearest
from crossdistill.models.checkpoint import is_checkpoint, keeps_weights, load_checkpoint
from crossdistill.models.own_network import complete, draw, frozen_weights, watch
from crossdistill.network import Network
from crossdistill.planning.run_teacher import run_teacher
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.runtime.hashing import derived_seed
from crossdistill.runtime.tensor_file import check_finite, load_weights


@dataclass(frozen=True, slots=True)
class Members:
    """The networks of a recipe, on their device, with the data that they read."""

    networks: Mapping[str, Network]
    dataset: Dataset
    notes: tuple[str, ...]
    """Lines that say what was decided for networks of other libraries."""
    faults: tuple[str, ...]


def build_members(recipe: Recipe, dataset: Dataset, device: torch.device) -> Members:
    """All networks of a recipe; what is wrong with any of them is in `faults`."""
    networks: dict[str, Network] = {}
    notes: list[str] = []
    faults: list[str] = []
    for name, given in {recipe.learner: recipe.student, **recipe.teachers}.items():
        try:
            built = _built(name, given, dataset, recipe)
            network = built.network
            new = {key: one for key, one in network.renderings.items() if key not in dataset.inputs}
            dataset = rendered(dataset, new, network.name) if new else dataset
            _examined(network, name, dataset)
            networks[name] = network.to(device)
            if recipe.channels_last:
                # PyTorch's annotations lack this form of `to`.
                networks[name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            own = (*built.notes, *_licence_notes(network), *_view_notes(network, dataset))
            notes += [f"{name!r}: {note}" for note in own]
        except CrossdistillError as error:
            where = "student" if name == recipe.learner else f"teachers.{name}"
            faults += [f"{where}: {one}" for one in (error.faults if isinstance(error, RecipeError) else [str(error)])]
    return Members(networks, dataset, tuple(notes), tuple(faults))


def _view_notes(network: Network, dataset: Dataset) -> list[str]:
    """A note for renderings of files, which a function of the program does not augment, as they are decoded anew."""
    if dataset.augmentation is None:
        return []
    varied = dataset.augmentation.inputs if isinstance(dataset.augmentation, Variations) else ()
    plain = [name for name in network.renderings if not (hasattr(dataset.inputs[name], "base") or name in varied)]
    return [f"it sees {', '.join(plain)} of each row without augmentation"] if plain else []


def _licence_notes(network: Network) -> list[str]:
    if network.licence is None or network.licence.commercial is not False:
        return []
    return [
        f"its licence, {network.licence.licence}, forbids commercial use, and a student that learns from it may fall "
        "under it; the student's card says so"
    ]


def _built(name: str, given: NetworkConfig | Network, dataset: Dataset, recipe: Recipe) -> Built:
    if isinstance(given, Network):
        network = given if given.factory is None or given.is_made else draw(given, recipe.seed, name)
        complete(network, dataset.example(), derived_seed("member", recipe.seed, name))
        return Built(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("member", recipe.seed, name))
        if backend_of(given.model) is None:
            built = Built(given.build(len(dataset.classes)))
            how = "frozen" if keeps_weights(given.weights, given.tune) and name != recipe.learner else given.tune
            if how is not None:
                built = Built(built.network, (*built.notes, *tune(built.network.module, how, given.model)))
        elif backend_of(given.model) == RUN:
            if name == recipe.learner:
                raise SettingError(f"{given.model}: a run's student is a teacher here; a student starts from `weights`")
            built = run_teacher(given.model.partition(":")[2], name, given.tune, dataset)
        else:
            built = build(
                given.model,
                given.options,
                given.reads,
                given.tune,
                given.dtype,
                member=name,
                dataset=dataset,
                student=name == recipe.learner,
            )
    if given.weights is not None and is_checkpoint(given.weights):
        load_checkpoint(built.network.module, given.weights, given.model)
    elif given.weights is not None:
        load_weights(built.network.module, given.weights, built.network.name)
    check_finite(built.network.module, given.model if given.weights is None else f"{given.model}, {given.weights}")
    return built


def _examined(network: Network, name: str, dataset: Dataset) -> None:
    """Run the network on a few rows, for its sizes and for what a pass changes.

    Raises:
        RecipeError: it reads modalities that the data do not have.
    """
    missing = [modality for modality in network.reads if modality not in dataset.inputs]
    if missing:
        who = f"{network.name} reads"
        known = f"which data {dataset.name!r} does not have"
        raise RecipeError(name, [f"{who} {m!r}, {known}; {nearest(m, dataset.inputs)}" for m in missing])
    device = next(iter(network.parameters()), torch.zeros(0)).device
    network.probe(dataset.example().to(device))
    network.frozen = frozen_weights(network.module)
    if network.has_own_code():
        train = dataset.splits["train"]
        watch(
            network, (dataset.batch(rows, only=network.reads).to(device) for rows in (train[:2], train[-2:], train[:3]))
        )
