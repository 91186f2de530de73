"""What `from crossdistill import ...` offers. A change here is a change for every user: it goes into CHANGELOG.md."""

import importlib.metadata
import subprocess
import sys

import pytest
from facts import raises

import crossdistill

PUBLIC = [
    "Augmentation",
    "Batch",
    "CrossdistillError",
    "Cut",
    "DataSpec",
    "Dataset",
    "Distiller",
    "InputSpec",
    "Live",
    "Masked",
    "Method",
    "MethodConfig",
    "Network",
    "NetworkConfig",
    "OptimizerConfig",
    "OutputSpec",
    "Outputs",
    "OwnAugmentation",
    "Progress",
    "Recipe",
    "Report",
    "Row",
    "Signal",
    "Stage",
    "Step",
    "Student",
    "Teacher",
    "Term",
    "Variation",
    "Variations",
    "__version__",
    "compare",
    "list_methods",
    "list_models",
    "load_student",
    "losses",
    "methods",
    "run",
]


def test_the_public_names_are_these() -> None:
    assert sorted(crossdistill.__all__) == PUBLIC


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


def test_an_unknown_name_is_an_attribute_error() -> None:
    with raises(AttributeError, "no_such_name"):
        _ = crossdistill.no_such_name


def test_the_version_is_that_of_the_installed_package() -> None:
    assert crossdistill.__version__ == importlib.metadata.version("crossdistill")


def test_d_dir_shows_the_public_names() -> None:
    assert dir(crossdistill) == sorted(crossdistill.__all__)


def test_the_old_name_of_signal_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="Signal"):
        assert crossdistill.Want is crossdistill.Signal
