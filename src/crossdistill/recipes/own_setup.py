"""Recipes from an ExperimentSetup that a user's function returns, or that a program holds."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from crossdistill.data.dataset import Dataset
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.errors import CrossdistillError, SettingError
from crossdistill.recipe import Recipe
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Seed, kd_for, route_for
from crossdistill.recipes.stages import recipe

LIVE = "live:"
"""Prefix of the name of a setup that this program holds, which no other process can build."""

_SETUPS: dict[str, ExperimentSetup] = {}
_MADE: dict[tuple[Any, ...], ExperimentSetup] = {}
MADE_LIMIT = 8
"""Setups of functions that are kept: a comparison asks for the same ones for each of its cells."""


def hold(setup: ExperimentSetup) -> str:
    """A name for a setup of the running program: that of its data, with their fingerprint if they are a `Dataset`."""
    data = setup.data
    name = f"{data.name}@{data.fingerprint[:12]}" if isinstance(data, Dataset) else data.name
    _SETUPS[LIVE + name] = setup
    return LIVE + name


def setup_of(source: str, function: Callable[..., Any] | None, **settings: Any) -> ExperimentSetup:
    """The setup of a name that `hold` returned, or that of a function, called with those settings that it accepts.

    Settings that the function does not accept are applied to the setup: `labelled` hides labels of the training rows.

    Raises:
        SettingError: the function fails, or returns something else.
    """
    accepted: dict[str, Any] = {}
    if function is None:
        if source not in _SETUPS:
            raise SettingError(f"{source!r} is a setup of a program that has ended; run that program again")
        setup = _SETUPS[source]
    else:
        parameters = inspect.signature(function).parameters
        accepted = {name: value for name, value in settings.items() if name in parameters}
        key = (source, *sorted(accepted.items()))
        if key not in _MADE:
            while len(_MADE) >= MADE_LIMIT:
                del _MADE[next(iter(_MADE))]
            _MADE[key] = _called(source, function, accepted)
        setup = _MADE[key]
    labelled = settings.get("labelled", 1.0)
    if labelled == 1.0 or "labelled" in accepted:
        return setup
    return _with_labels(setup, labelled, settings.get("seed", 0))


def _called(source: str, function: Callable[..., Any], arguments: dict[str, Any]) -> ExperimentSetup:
    try:
        setup = function(**arguments)
    except CrossdistillError:
        raise
    except Exception as error:  # the user's code may raise any error
        raise SettingError(f"setup {source!r} fails: {type(error).__name__}: {error}") from error
    if not isinstance(setup, ExperimentSetup):
        raise SettingError(f"{source} returned an object of type {type(setup).__name__}; wanted an ExperimentSetup")
    return setup


def _with_labels(setup: ExperimentSetup, labelled: float, seed: int) -> ExperimentSetup:
    """The setup with a fraction of the labels, and the weights for so many labels where it leaves them at defaults."""
    if isinstance(setup.data, Dataset):
        data: Any = hide_labels(setup.data, labelled, seed)
    else:
        data = setup.data.model_copy(update={"labelled": labelled, "label_seed": seed})
    weights = {"kd": kd_for(labelled), "route": route_for(labelled)}
    defaults = {name: weight for name, weight in weights.items() if name not in setup.model_fields_set}
    return setup.model_copy(update={"data": data, **defaults})


def from_setup(
    source: str,
    function: Callable[..., Any] | None,
    method: str,
    *,
    student: str | None = None,
    teachers: Kind | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
) -> Recipe:
    """A method's recipe for a setup; `student` is a modality (default: the first)."""
    setup = setup_of(source, function, labelled=labelled, seed=seed)
    chosen = student or next(iter(setup.networks))
    return recipe(setup, method, student=chosen, teachers=teachers, seed=seed, control=control)


def maker(source: str, function: Callable[..., Any] | None, method: str) -> Callable[..., Recipe]:
    """The function that builds a method's recipe from the settings of a command line."""
    return functools.partial(from_setup, source, function, method)
