"""What `from crossdistill import ...` offers. A change here is a change for every user: it goes into CHANGELOG.md."""

import importlib.metadata
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import toy_recipe
from facts import raises, warned

import crossdistill
import crossdistill.recipes
import crossdistill.testing
from crossdistill.errors import SettingError
from crossdistill.planning.fill_banks import prefill

PUBLIC = [
    "Augmentation", "Batch", "CrossdistillError", "Cut", "DataSpec", "Dataset", "Distiller", "ExperimentSetup",
    "Fused", "InputSpec", "Live", "Masked", "Method", "MethodConfig", "Network", "NetworkConfig", "OptimizerConfig",
    "OutputSpec", "Outputs", "OwnAugmentation", "Progress", "Recipe", "Report", "Row", "Signal", "Stage", "Step",
    "Student", "Teacher", "Term", "Variation", "Variations", "__version__", "compare", "distill", "list_methods",
    "list_models", "load_student", "losses", "methods", "run",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(crossdistill.__all__) == dir(crossdistill) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_documented(name: str) -> None:
    found = getattr(crossdistill, name)
    assert isinstance(found, str) or (found.__doc__ or "").strip(), f"crossdistill.{name} has no docstring"


def test_dir_shows_the_public_names_before_any_is_used() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import crossdistill; print(*dir(crossdistill))"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == sorted(PUBLIC)


def test_an_unknown_name_is_an_attribute_error_and_the_version_is_the_installed_one() -> None:
    with raises(AttributeError, "no_such_name"):
        _ = crossdistill.no_such_name
    assert crossdistill.__version__ == importlib.metadata.version("crossdistill")


def test_the_old_name_of_signal_works_with_a_warning() -> None:
    with warned(DeprecationWarning, "Signal"):
        assert crossdistill.Want is crossdistill.Signal


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (crossdistill.testing, "toy_cast", "toy_models"),
        (crossdistill.testing, "toy_map_cast", "toy_map_models"),
        (crossdistill.recipes, "family_kit", "family_setup"),
    ],
)
def test_an_old_name_is_the_new_one_with_a_warning(module: Any, old: str, new: str) -> None:
    with warned(DeprecationWarning, new):
        assert getattr(module, old) is getattr(module, new)
    with raises(AttributeError, "no_such_name"):
        _ = module.no_such_name


def _public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of the package and of `compare`, and the methods that public classes define."""
    for module in (crossdistill, crossdistill.compare):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield name, value
            elif inspect.isclass(value):
                for key, member in vars(value).items():
                    function = getattr(member, "__func__", member)
                    if inspect.isfunction(function) and not key.startswith("_"):
                        yield f"{name}.{key}", function
    yield "prefill", prefill


def test_every_path_may_be_a_text() -> None:
    hints = {
        f"{name}({argument}=)": {hint, *typing.get_args(hint)}
        for name, function in _public_functions()
        if any("Path" in str(annotation) for annotation in function.__annotations__.values())
        for argument, hint in typing.get_type_hints(function).items()
        if argument != "return"
    }
    paths = {where: kinds for where, kinds in hints.items() if Path in kinds}
    assert {"run(share=)", "run(banks=)", "compare(out=)", "Report.load(out=)", "prefill(out=)"} <= set(paths)
    assert not [where for where, kinds in paths.items() if str not in kinds]


def test_a_run_takes_its_folders_as_texts(tmp_path: Path) -> None:
    out, share, banks = (str(tmp_path / name) for name in ("run", "share", "banks"))
    recipe = toy_recipe().tiny()
    prefill(recipe, out, share=share, banks=banks)
    report = crossdistill.run(recipe, out, share=share, banks=banks)
    assert any(Path(share).iterdir())
    assert crossdistill.Report.load(out) == report
    with raises(crossdistill.CrossdistillError, "recipe.yaml"):
        crossdistill.Recipe.from_yaml(f"{out}/no/recipe.yaml")


@pytest.mark.parametrize("argument", ["share", "banks"])
def test_an_empty_folder_is_refused(argument: str, tmp_path: Path) -> None:
    with raises(SettingError, argument):
        crossdistill.run(toy_recipe(), tmp_path, **{argument: ""})  # type: ignore[arg-type]
