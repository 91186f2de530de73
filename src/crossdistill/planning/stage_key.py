"""The parts of a stage's key for its initial networks and its data."""

import torch
from torch import Tensor

from crossdistill.batch import Input
from crossdistill.data.dataset import Dataset
from crossdistill.models import find_model
from crossdistill.network import Network
from crossdistill.recipe import Recipe
from crossdistill.runtime.hashing import fingerprint, key_hash, tensor_hash


def initial_key(recipe: Recipe, name: str, network: Network) -> str:
    """The key of a member at the start of a run: its weights, or the source of their random values, and its code."""
    given = recipe.student if name == recipe.learner else recipe.teachers[name]
    if isinstance(given, Network):
        # Equal weights in different architectures are different networks.
        key = [network.code_text(), network.reads, network.taps, fingerprint(network)]
        return key_hash([*key, sorted(network.frozen)] if network.frozen else key)
    settings = given.model_dump(mode="json", exclude={"weights"})
    if network.has_own_code() or not find_model(given.model).source.startswith("crossdistill."):
        settings["code"] = network.code_text()
    if network.frozen:
        settings["frozen"] = sorted(network.frozen)
    if given.weights is not None:
        return key_hash([settings, fingerprint(network)])
    return key_hash([name, recipe.seed, settings])


def views_key(dataset: Dataset) -> str | None:
    """The key of the views of training rows; for augmentations without a key, a hash of two augmented rows."""
    own = dataset.augmentation
    if own is None:
        return None
    if own.key is not None:
        return own.key
    rows = dataset.splits["train"][:2]
    plain = {name: dataset.read(name, rows) for name in dataset.inputs}
    seen = own(plain, rows, torch.ones_like(rows))
    return key_hash({name: _hash(value) for name, value in seen.items()})


def _hash(value: Input) -> str:
    if isinstance(value, Tensor):
        return tensor_hash(value)
    return key_hash({part: tensor_hash(tensor) for part, tensor in value.items()})
