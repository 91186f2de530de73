"""Shared parts of the recipes of several methods: stages, and descriptions of recipes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossdistill.methods.supervised import Supervised
from crossdistill.network import Network
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes.setup import ExperimentSetup, Kind, Length
from crossdistill.stage import Stage

Stages = Callable[[ExperimentSetup, str, Sequence[str]], tuple[Stage, ...]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting in which a preset differs from another form of its method, with the reason."""

    setting: str
    """STAGE.FIELD, where STAGE is the name of the stage's method, or data.FIELD."""
    value: Any
    instead_of: Any
    why: str


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """The plan of a method's recipe: its stages, and the default kind of teachers (None: no teacher)."""

    stages: Stages
    kind: Kind | None
    kinds: tuple[Kind, ...] = ()
    """Other suitable kinds of teachers."""
    described: str | None = None
    differs: tuple[Difference, ...] | None = None
    """Differences of a preset from the paper (or from the form that `instead_of` describes); None: not a preset.
    `recipe` applies those of the data, where the data have such a setting."""
    added: Callable[[ExperimentSetup], Mapping[str, NetworkConfig | Network]] | None = None
    """Members besides student and teachers, such as a proxy, by name."""

    def data_settings(self) -> dict[str, Any]:
        """The settings of the data that belong to the preset."""
        settings = {difference.setting: difference.value for difference in self.differs or ()}
        return {path[5:]: value for path, value in settings.items() if path.startswith("data.")}

    @property
    def about(self) -> str:
        """One line of description: `described`, or the first line of the docstring of `stages`."""
        return (self.described or self.stages.__doc__ or "").strip().split("\n")[0]


def from_labels(setup: ExperimentSetup, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """One supervised stage for each teacher that trains; shared by every recipe that uses the same teacher."""
    return tuple(
        Stage(
            name=f"supervised-{stage_name(name)}",
            method=Supervised(),
            learner=name,
            teachers=(),
            epochs=setup.supervised.epochs,
            batch_size=setup.batch_size,
            optimizer=setup.optimizer(setup.supervised),
        )
        for name in setup.trainable(teachers)
    )


def stage_name(member: str) -> str:
    """A member's name in the name of a stage, which has small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", member.lower()).strip("-")


def stage_of(name: str, method: Any, setup: ExperimentSetup, length: Length, **settings: Any) -> Stage:
    """A stage with the setup's batch size and optimizer."""
    return Stage(
        name=name,
        method=method,
        epochs=length.epochs,
        batch_size=setup.batch_size,
        optimizer=setup.optimizer(length),
        **settings,
    )


def taps_of(setup: ExperimentSetup, teachers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The intermediate and the penultimate layer of each teacher."""
    return {name: setup.layers(name) for name in teachers}
