"""The keys of stages: hashes of everything that a stage's numbers depend on."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from crossdistill import __version__
from crossdistill.backends.names import backend_of
from crossdistill.batch import Input
from crossdistill.data.dataset import Dataset
from crossdistill.data.sampler import Order
from crossdistill.method import STUDENT, Method
from crossdistill.models import find_model
from crossdistill.network import Network
from crossdistill.planning.preflight import Trained
from crossdistill.planning.sources import Choices, choices_key, masked_base, unkeyed_views
from crossdistill.recipe import Recipe
from crossdistill.runtime.code_key import CodeKey
from crossdistill.runtime.hashing import fingerprint, key_hash, tensor_hash
from crossdistill.stage import Stage
from crossdistill.teacher import Teacher

SCHEMA = 2
"""Version of the keys; increased when equal keys would stand for different numbers."""


class StageKeys:
    """The keys of a recipe's stages, made in their order.

    It holds the key of each member's current weights: at first that of its initial weights, after a stage that trains
    it a hash of the stage's key and its name. A teacher that a stage makes has such a key too.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, members: Mapping[str, Network], device: torch.device) -> None:
        self._recipe = recipe
        self._dataset = dataset
        self._device = device
        self._initial = {name: initial_key(recipe, name, members[name]) for name in members}
        self._current = dict(self._initial)
        self._unkeyed = {name: network.unkeyed() for name, network in members.items() if network.has_own_code()}

    def restart(self, member: str) -> None:
        """Record that a member has its initial weights again."""
        self._current[member] = self._initial[member]

    def advance(self, names: Iterable[str], stage_key: str, unkeyed: list[str]) -> None:
        """Record that a stage with this key trained these members, or made these teachers."""
        for name in names:
            self._current[name], self._unkeyed[name] = key_hash([stage_key, name]), unkeyed

    def stage(
        self,
        stage: Stage,
        method: Method,
        learner: str,
        trained: Trained,
        teachers: Mapping[str, Teacher],
        control: str | None,
        choices: Choices,
        code: CodeKey,
        order: Order,
    ) -> str:
        """The key of the next stage: equal keys mean bit-identical results. `control` is the one that it applies."""
        # New options at their neutral defaults must not change keys; a changed default needs a new SCHEMA.
        omitted = {"source", "learner", "trains", "teachers"}
        settings = stage.model_dump(mode="json", exclude=omitted, exclude_defaults=True)
        settings["method"] = {"name": stage.method.name, **settings.get("method", {})}
        labelled = self._dataset.labelled if learner == self._recipe.learner else None
        # If roles are interchangeable, the student matters only for hidden labels and for selection.
        role = None if method.symmetric and stage.select == "last" else learner
        teacher_keys = {name: self._teacher(name, teacher) for name, teacher in teachers.items()}
        # Only for banked outputs: stages with banks and live stages differ in the last bits.
        banked, views = choices_key(choices), views_key(self._dataset)
        merged = [self._recipe.learner if name == STUDENT else name for name in stage.merged]
        # The names of entries are part of the hash, so they stay as they are.
        return key_hash(
            {
                "schema": SCHEMA,
                "versions": [__version__, torch.__version__, self._device.type],
                "data": self._dataset.fingerprint,
                "seed": self._recipe.seed,
                "stage": settings,
                "role": role,
                "hidden": None if labelled is None else [learner, tensor_hash(labelled)],
                "trained": sorted(
                    f"{name}:{tap}" for name, (_, taps) in trained.items() for tap in sorted(taps) or [""]
                ),
                "cast": {name: self._current[name] for name in {learner, *trained, *merged}} | teacher_keys,
                "layout": "channels last" if self._recipe.channels_last else None,
                "control": control,
                **({"banked": banked} if banked else {}),
                **({"views": views} if views else {}),
                # For methods or data in the user's code; code of this package changes with the version.
                **({"code": code.text()} if code.own else {}),
                **({"joined": True} if order.joined else {}),
                **({"mix": order.mix.key} if order.mix is not None else {}),
            }
        )

    def unkeyed(self, members: Collection[str], teachers: Mapping[str, Teacher], code: CodeKey) -> list[str]:
        """Possible dependencies of a stage's numbers that are not in its key, one sentence each."""
        bases = {base.name for base in map(masked_base, teachers.values()) if base is not None}
        networks = [
            f"{name}: {reason}"
            for name in sorted({*members, *teachers, *bases})
            for reason in self._unkeyed.get(name, [])
        ]
        return list(dict.fromkeys([*networks, *code.faults.values(), *unkeyed_views(self._dataset)]))

    def _teacher(self, name: str, teacher: Teacher) -> str:
        """The key of a teacher; for a masked one with that of its base, which may train again later."""
        key, base = self._current[name], masked_base(teacher)
        return key if base is None else key_hash([key, self._current[base.name]])


def initial_key(recipe: Recipe, name: str, network: Network) -> str:
    """The key of a member at the start of a run: its weights, or the source of their random values, and its code."""
    config = recipe.student if name == recipe.learner else recipe.teachers[name]
    if isinstance(config, Network):
        # Equal weights in different architectures are different networks.
        key = [network.code_text(), network.reads, network.taps, fingerprint(network)]
        return key_hash([*key, sorted(network.frozen)] if network.frozen else key)
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"weights"})
    if network.frozen:
        settings["frozen"] = sorted(network.frozen)
    if backend_of(config.model) is not None:
        # The folder's place and the library's name of it are no part: the weights, the code and the preparation are.
        renderings = [network.renderings[key].key for key in sorted(network.renderings)]
        own = [network.code_text(), network.reads, renderings, sorted(network.frozen), fingerprint(network)]
        return key_hash([*own, settings["options"]])
    model = find_model(config.model)
    if network.has_own_code() or not model.source.startswith("crossdistill."):
        settings["code"] = network.code_text()
    if model.revision:
        settings["revision"] = model.revision
    if config.weights is not None or config.options.get("initial") is not None:
        # Weights of a file or a folder, which may change in place: they are part of the key, and its place is not.
        settings["options"] = {key: value for key, value in settings["options"].items() if key != "initial"}
        return key_hash([settings, fingerprint(network)])
    return key_hash([name, recipe.seed, settings])


def views_key(dataset: Dataset) -> str | None:
    """The key of the views of training rows; for augmentations without a key, a hash of two augmented rows."""
    augmentation = dataset.augmentation
    if augmentation is None:
        return None
    if augmentation.key is not None:
        return augmentation.key
    rows = dataset.splits["train"][:2]
    plain = {name: dataset.read(name, rows) for name in dataset.inputs}
    augmented = augmentation(plain, rows, torch.ones_like(rows))
    return key_hash({name: _hash(value) for name, value in augmented.items()})


def _hash(value: Input) -> str:
    if isinstance(value, Tensor):
        return tensor_hash(value)
    return key_hash({part: tensor_hash(tensor) for part, tensor in value.items()})
