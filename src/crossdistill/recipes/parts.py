"""What the recipes of several methods have in common: stages, and how a recipe is described."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crossdistill.methods.supervised import Supervised
from crossdistill.recipes.setup import ExperimentSetup, Kind, Length
from crossdistill.stage import Stage

Stages = Callable[[ExperimentSetup, str, Sequence[str]], tuple[Stage, ...]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting in which a preset differs from another form of its method, and why."""

    setting: str
    """STAGE.FIELD, with the stage by its method's name, or data.FIELD."""
    value: Any
    instead_of: Any
    why: str


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """How a method's recipe is made: its stages, and the teachers that it takes by default (None: no teacher)."""

    stages: Stages
    kind: Kind | None
    kinds: tuple[Kind, ...] = ()
    """The other choices of teachers that make sense."""
    described: str | None = None
    differs: tuple[Difference, ...] | None = None
    """Of a preset, from the paper (or whatever `instead_of` is of); None: this is no preset. Those of the data are
    settled by `recipe`, where the data have such a setting."""

    def data_settings(self) -> dict[str, Any]:
        """The settings of the data that belong to the preset."""
        return {one.setting[5:]: one.value for one in self.differs or () if one.setting.startswith("data.")}

    @property
    def about(self) -> str:
        """A line for people: as described, or what the function of its stages says."""
        return (self.described or self.stages.__doc__ or "").strip().split("\n")[0]


def pretrained(setup: ExperimentSetup, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """One supervised stage for each teacher; shared by every recipe that uses the same teacher."""
    return tuple(
        Stage(
            name=f"supervised-{name}",
            method=Supervised(),
            learner=name,
            teachers=(),
            epochs=setup.supervised.epochs,
            batch_size=setup.batch_size,
            optimizer=setup.optimizer(setup.supervised),
        )
        for name in teachers
    )


def stage_of(name: str, method: Any, setup: ExperimentSetup, length: Length, **settings: Any) -> Stage:
    """A stage of the setup's batch size and optimizer."""
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
    return {name: setup.taps[name] for name in teachers}
