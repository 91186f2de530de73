"""The tables of the pages agree with the code and the results, and `.ci/tables.py --check` finds a stale one."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer
from pydantic import BaseModel

from crossdistill import OptimizerConfig, Recipe, Stage, Variation
from crossdistill.bank.bank import BankSettings
from crossdistill.cli.main import app
from crossdistill.data import DATA
from crossdistill.methods import METHODS
from crossdistill.models import MODELS
from crossdistill.recipes.stages import PLANS, RIVALS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    """The script, which finds its neighbours in its own folder."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import tables

        yield tables
    finally:
        sys.path.remove(str(ROOT / ".ci"))
        for name in ("tables", "tables_of_code", "tables_of_results"):
            sys.modules.pop(name, None)


def rows(table: str) -> list[list[str]]:
    """The cells below the head, without code marks and links."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", table).replace("`", "").replace(r"\|", "\x00")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines()[2:] if line[:1] == "|"]


def test_the_tables_of_the_pages_are_of_now() -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stale_table_is_found(tables: ModuleType) -> None:
    page = "<!-- table: models -->\n| model |\n<!-- end -->\n"
    assert tables.written(page) != page
    assert tables.written(tables.written(page)) == tables.written(page)
    for wrong in ("<!-- table: no-such-table -->\n<!-- end -->", "<!-- table: models -->\n"):
        with pytest.raises(SystemExit):
            tables.written(wrong)


def test_the_tables_have_what_the_package_has(tables: ModuleType) -> None:
    assert sorted(row[0] for row in rows(tables.code.methods())) == sorted(METHODS)
    assert [row[0] for row in rows(tables.code.models())] == list(MODELS)
    assert [row[0] for row in rows(tables.code.data())] == list(DATA)
    found = {name: (kind, about) for name, kind, about in rows(tables.code.recipes())}
    plans = {name: (plan.kind or "", plan.about.rstrip(".")) for name, plan in PLANS.items()}
    assert found == plans
    assert list(found) == list(plans)
    assert f"[{len(RIVALS)} rivals]" in (ROOT / "README.md").read_text()


def _command_names(command: object, path: str = "crossdistill") -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
        return
    for name, one in inner.items():
        yield from _command_names(one, f"{path} {name}")


def test_the_table_of_commands_has_every_command(tables: ModuleType) -> None:
    found = [re.sub(r"( [A-Z_.]+)+$", "", row[0]) for row in rows(tables.code.commands())]
    assert sorted(found) == sorted(_command_names(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("recipe", Recipe),
        ("stage", Stage),
        ("stage", OptimizerConfig),
        ("bank.bank", BankSettings),
        ("data.augmentation", Variation),
    ],
)
def test_a_table_of_settings_has_every_field(tables: ModuleType, source: str, kind: type[BaseModel]) -> None:
    found = {row[0]: row[2] for row in rows(tables.code.settings(source, kind.__name__))}
    assert list(found) == list(kind.model_fields)
    assert {name for name, default in found.items() if default == "required"} == {
        name for name, field in kind.model_fields.items() if field.is_required()
    }


def test_the_table_of_cost_marks_what_is_over_its_limit(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [("time", 0.5, 0.4), ("switch", 2.0, None), ("memory", 0.2, 0.25)]
    lines = [
        {"name": name, "value": value, "limit": most, "spread": 0.1, "device": "cpu"} for name, value, most in figures
    ]
    (tmp_path / "results.json").write_text(json.dumps(lines))
    monkeypatch.setattr(tables.results, "BENCHMARKS", tmp_path / "results.json")
    assert rows(tables.results.cost()) == [
        ["time", "**0.500 ± 0.100**", "0.4", "cpu"],
        ["switch", "2.000 ± 0.100", "", "cpu"],
        ["memory", "0.200 ± 0.100", "0.25", "cpu"],
    ]
