"""Tuning under equal conditions: the same number of trials for every method, selected on the validation split."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml
from pydantic import BaseModel

from crossdistill.compare.grid import Cell, Grid, Setting
from crossdistill.errors import RecipeError, SettingError
from crossdistill.method import STUDENT
from crossdistill.overrides import parse_override
from crossdistill.recipe import Recipe

FIRST_SEED = 1000
"""First seed of the trials, which no cell of the table uses."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One field and the values to try."""

    field: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """A sweep from `FIELD=a,b,c`; commas inside brackets belong to a value.

        Raises:
            SettingError: the text has another form, or repeats a value.
        """
        field, equals, listed = text.partition("=")
        if not equals or not field.strip() or not listed.strip():
            raise SettingError(f"--sweep {text}: wanted FIELD=VALUE,VALUE,..., as in --sweep temperature=1,2,4")
        try:
            values = tuple(parse_override(f"{field}={part}")[1] for part in _parts(listed))
        except SettingError as error:
            raise SettingError(f"--sweep {text}: {error}") from error
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise SettingError(f"--sweep {text}: the value {twice[0]!r} is given twice")
        return cls(field.strip(), values)


def _parts(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def path_of(recipe: Recipe, field: str) -> str | None:
    """The `--set` path of a field in a recipe; None if the recipe lacks the field.

    A path that starts with a field of the recipe (`stages.kd.method.alpha`) is returned unchanged. A bare field is
    searched in the methods of the stages that train the student, from the last to the first, then in the last of
    these stages (`epochs`), then in its optimizer (`learning_rate`).
    """
    parts = field.split(".")
    if parts[0] in Recipe.model_fields:
        return field if _has(recipe, parts) else None
    stages = [stage for stage in recipe.stages if stage.learner == STUDENT]
    places = [f"stages.{stage.name}.method.{field}" for stage in reversed(stages)]
    places += [f"stages.{stages[-1].name}.{inner}{field}" for inner in ("", "optimizer.")] if stages else []
    return next((path for path in places if _has(recipe, path.split("."))), None)


def _has(node: Any, path: Sequence[str]) -> bool:
    if not path:
        return True
    head, rest = path[0], path[1:]
    if isinstance(node, BaseModel):
        return head in type(node).model_fields and _has(getattr(node, head), rest)
    if isinstance(node, Mapping):
        return head in node and _has(node[head], rest)
    if isinstance(node, list | tuple):
        items = [item for item in node if getattr(item, "name", None) == head]
        items += [node[int(head)]] if head.isdigit() and int(head) < len(node) else []
        return bool(items) and _has(items[0], rest)
    return False


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of values for one setting, and its cells, one for each tuning seed."""

    values: Mapping[str, Any]
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """The trials of one setting, and the swept fields that the setting lacks."""

    setting: Setting
    trials: tuple[Trial, ...]
    missing: tuple[str, ...]

    def chosen(self, score: Callable[[Cell], float | None]) -> tuple[Trial, list[list[float]]]:
        """The trial with the best mean score (the first of equal ones), and all scores.

        Raises:
            RecipeError: no trial of the setting has a score.
        """
        scores = [[value for cell in trial.cells if (value := score(cell)) is not None] for trial in self.trials]
        # A trial that failed on a seed is not compared with trials that ran on all seeds.
        whole = [i for i, trial in enumerate(self.trials) if len(scores[i]) == len(trial.cells)]
        if not whole:
            raise RecipeError(self.setting.title, ["none of its trials finished, so no values can be chosen"])
        best = max(whole, key=lambda i: (sum(scores[i]) / max(1, len(scores[i])), -i))
        return self.trials[best], scores

    def as_data(self, best: Trial, scores: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The trials, scores and choice as plain values."""
        return {
            **{name: value for name, value in asdict(self.setting).items() if name != "control"},
            "trials": [
                {
                    "values": dict(trial.values),
                    "seeds": [cell.seed for cell in trial.cells],
                    "validation_accuracy": list(accuracies),
                }
                for trial, accuracies in zip(self.trials, scores, strict=True)
            ],
            "chosen": dict(best.values),
            "settings": list(best.settings),
            "missing": list(self.missing),
        }


def tunings(grid: Grid, cells: Sequence[Cell]) -> list[Tuning]:
    """The trials of every setting among the cells, without controls.

    Several sweeps are combined in all ways. A setting that lacks a field has fewer combinations and runs each of them
    on more seeds, so that all settings run the same number of trials. A setting with one combination runs no trials.

    Raises:
        RecipeError: fields refuse values, or no method has a field; lists all faults.
    """
    sweeps = [Sweep.parse(text) for text in grid.sweep]
    named = [sweep.field for sweep in sweeps]
    if len(set(named)) < len(named):
        raise SettingError(f"--sweep: {next(n for n in named if named.count(n) > 1)!r} is given twice")
    trials = 1
    for sweep in sweeps:
        trials *= len(sweep.values)
    by_setting: dict[Setting, Tuning] = {}
    faults: dict[str, None] = {}
    for cell in cells:
        if cell.control is None and cell.setting not in by_setting:
            by_setting[cell.setting] = _tuning(cell, sweeps, trials, faults)
    unused = [name for name in named if all(name in tuning.missing for tuning in by_setting.values())]
    faults |= {f"--sweep {name}: no method of the comparison has this field": None for name in unused if by_setting}
    if faults:
        raise RecipeError(f"compare {grid.data}", list(faults))
    return list(by_setting.values())


def _tuning(cell: Cell, sweeps: Sequence[Sweep], budget: int, faults: dict[str, None]) -> Tuning:
    recipe = cell.recipe()
    paths = {sweep.field: path_of(recipe, sweep.field) for sweep in sweeps}
    there = [sweep for sweep in sweeps if paths[sweep.field] is not None]
    combinations = list(itertools.product(*(sweep.values for sweep in there)))
    seeds = range(FIRST_SEED, FIRST_SEED + budget // len(combinations)) if len(combinations) > 1 else ()
    trials = []
    for number, combination in enumerate(combinations):
        values = {sweep.field: value for sweep, value in zip(there, combination, strict=True)}
        settings = tuple(f"{paths[field]}={_text(value)}" for field, value in values.items())
        tried = [
            replace(cell, seed=seed, settings=(*cell.settings, *settings), trial=number)
            for seed in (seeds or (FIRST_SEED,))
        ]
        try:
            tried[0].recipe()
        except RecipeError as error:
            faults |= {f"--sweep, {cell.method}: {fault}": None for fault in error.faults}
        trials.append(Trial(values, settings, tuple(tried) if seeds else ()))
    return Tuning(cell.setting, tuple(trials), tuple(sweep.field for sweep in sweeps if paths[sweep.field] is None))


def _text(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("...").strip()


def with_choices(cells: Sequence[Cell], choices: Mapping[Setting, tuple[str, ...]]) -> list[Cell]:
    """The cells with the chosen settings; a control takes the choice of the method that it controls."""
    chosen = [choices.get(replace(cell.setting, control=None), ()) for cell in cells]
    return [replace(cell, settings=(*cell.settings, *more)) for cell, more in zip(cells, chosen, strict=True)]
