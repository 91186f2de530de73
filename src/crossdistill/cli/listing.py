"""`crossdistill list`: recipes, methods, data and models, by the names that recipes and commands take."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import typer
from pydantic_core import to_jsonable_python

from crossdistill.cli.options import AsJson
from crossdistill.runtime.escaping import visible

listing = typer.Typer(
    help="List recipes, methods, data sets, models or probes.", no_args_is_help=True, rich_markup_mode=None
)

Entry = TypeVar("Entry")

WIDE = 200
"""Characters in a line where the output is not a terminal."""


@listing.command("recipes")
def recipes(as_json: AsJson = False) -> None:
    """List the recipes that `run` accepts, with their teachers."""
    from crossdistill.recipes import FAMILIES, OWN_METHODS, own_methods
    from crossdistill.recipes.stages import PLANS

    rows = [
        {
            "name": f"{data}/{method}",
            "data": data,
            "method": method,
            "teachers": plan.kind,
            "about": plan.about,
        }
        for data in FAMILIES
        for method, plan in PLANS.items()
    ]
    for data in OWN_METHODS:
        own = {method: _first(make).rstrip(".") for method, make in own_methods(data).items()}
        rows += [
            {"name": f"{data}/{method}", "data": data, "method": method, "teachers": "by name", "about": about}
            for method, about in own.items()
        ]
    _print(rows, as_json, hidden=("data", "method"))


@listing.command("probes")
def probes(as_json: AsJson = False) -> None:
    """List the tasks of `crossdistill probe`, with their data and metric."""
    from crossdistill.probes.tasks import TASKS

    _print([{"name": task.name, "metric": task.metric, "about": task.about} for task in TASKS.values()], as_json)


@listing.command("methods")
def methods(as_json: AsJson = False) -> None:
    """List the distillation methods of a stage, and the presets.

    A preset is a recipe whose settings differ from the method's publication; each difference is listed with its reason.
    With --json the settings of each method are printed too.
    """
    from dataclasses import asdict

    from crossdistill.methods import find, list_methods
    from crossdistill.recipes.stages import PLANS

    rows = [
        {
            "name": name,
            "about": _first(config),
            "settings": {
                k: None if f.is_required() else f.get_default(call_default_factory=True)
                for k, f in config.model_fields.items()
                if k != "name"
            },
            "required": [k for k, f in config.model_fields.items() if f.is_required()],
        }
        for name, config in _entries(list_methods(), find)
    ]
    presets = {
        name: [asdict(setting) for setting in plan.differs] for name, plan in PLANS.items() if plan.differs is not None
    }
    if as_json:
        entries: dict[str, dict[str, Any]] = {str(row["name"]): row for row in rows}
        for name, differs in presets.items():
            entries[name] = {"about": PLANS[name].about, **entries.get(name, {"name": name}), "differs": differs}
        _print(list(entries.values()), as_json)
        return
    _print(rows, as_json, hidden=("settings", "required"))
    typer.echo("\nPresets (DATA/PRESET is a recipe):\n")
    _print([{"name": name, "about": PLANS[name].about} for name in presets], as_json)
    typer.echo("")
    _print([{"preset": name, **setting} for name, differs in presets.items() for setting in differs], as_json)


@listing.command("data")
def data(as_json: AsJson = False) -> None:
    """List the data sets, with the path and size of their cached files."""
    from crossdistill.data import find_data, names
    from crossdistill.errors import CrossdistillError

    rows: list[dict[str, Any]] = []
    for name, config in _entries(names(), find_data):
        try:
            entry = config(name=name).cached()
        except CrossdistillError:
            entry = None
        except Exception as error:  # code of another package may raise any error
            _complain(f"data {name!r}: {type(error).__name__}: {error}")
            continue
        rows.append(
            {
                "name": name,
                "about": _first(config),
                "cached": None if entry is None else str(entry.path),
                "bytes": None if entry is None else entry.size_bytes,
            }
        )
    _print(rows, as_json)


@listing.command("models")
def models(as_json: AsJson = False) -> None:
    """List the built-in networks, with their layers.

    Shows the number of parameters (for 10 classes), the modalities that are read, and the taps: the layers whose
    outputs a method can use. There is no number for networks whose size depends on options that a recipe has to give.
    """
    import torch

    from crossdistill.models import find_model, list_models

    rows = []
    for name, model in _entries(list_models(), find_model):
        try:
            size = None
            if not model.required:
                with torch.device("meta"):
                    size = sum(parameter.numel() for parameter in model.module(classes=10).parameters())
        except Exception as error:  # code of another package may raise any error
            _complain(f"model {name!r}: {type(error).__name__}: {error}")
            continue
        rows.append({"name": name, "parameters": size, "modalities": list(model.modalities), "taps": list(model.taps)})
    _print(rows, as_json)


def _entries(names: Iterable[str], find: Callable[[str], Entry]) -> Iterator[tuple[str, Entry]]:
    """The entry of each name; an entry of a broken package is skipped with a message."""
    from crossdistill.errors import SettingError

    for name in names:
        try:
            yield name, find(name)
        except SettingError as error:
            _complain(str(error))


def _complain(text: str) -> None:
    typer.echo(f"crossdistill: {visible(text)}", err=True)


def _first(thing: object) -> str:
    return next(iter((thing.__doc__ or "").strip().splitlines()), "")


def _print(rows: Sequence[Mapping[str, Any]], as_json: bool, hidden: Sequence[str] = ()) -> None:
    if as_json:
        typer.echo(json.dumps(to_jsonable_python(rows), indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    columns = [name for name in rows[0] if name not in hidden]
    for name in columns:
        table.add_column(name, justify="right" if name in {"parameters", "bytes"} else "left", no_wrap=name == "name")
    for row in rows:
        # As Text: rich would read square brackets as styles.
        table.add_row(*(Text(visible(_cell(row[name]))) for name in columns))
    # A pipe or a file gets long lines: programs that read them expect no line breaks.
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)
