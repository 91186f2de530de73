"""What the package promises of its dependencies, and that it installs without the pinned versions."""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

TESTED_EXTRAS = ("demo", "audio", "image", "tensorboard")


def oldest(root: Path) -> dict[str, Version]:
    """The lines of constraints-oldest.txt."""
    lines = (root / "constraints-oldest.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in pinned}


def test_every_lower_bound_is_a_version_that_is_tested(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in TESTED_EXTRAS for text in extras[extra])]
    declared = [Requirement(text) for text in texts]
    bounds = {one.name.lower(): Version(next(iter(one.specifier)).version) for one in declared}
    assert all(str(one.specifier).startswith(">=") for one in declared)
    assert {name: version for name, version in oldest(root).items() if name in bounds} == bounds


def test_what_was_tested_is_noted(root: Path) -> None:
    """CI runs both ends where this says that a declaration changed; the note itself is well formed."""
    due = subprocess.run(
        [sys.executable, ".ci/dependencies.py", "due"], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert set(due.stdout.split()) <= {"oldest", "newest"}
    noted = root / ".ci" / "tested"
    for line in noted.read_text().splitlines() if noted.is_file() else ():
        end, declared, rest = line.split(maxsplit=2)
        assert end in ("oldest", "newest")
        assert len(declared) == 16
        assert "torch" in rest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_empty_environment_without_pinned_versions_runs_the_demo(root: Path, tmp_path: Path) -> None:
    """As README says: torch first, in the build that one wants, then the checkout."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=900)

    version = torch.__version__.partition("+")[0]
    got = run("-m", "pip", "install", "--quiet", f"torch=={version}")
    if got.returncode:
        pytest.skip(f"pip cannot install torch here: {got.stderr[-300:]}")
    assert run("-m", "pip", "install", "--quiet", f"{root}[demo]").returncode == 0
    done = run("-m", "crossdistill", "compare", "av-digits", "--preset", "demo", "--tiny", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert "mst-distill" in (tmp_path / "demo" / "report.md").read_text()
