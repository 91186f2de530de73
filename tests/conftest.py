"""Set-up of every test session: checked annotations, one thread, own cache folder, fixed seeds, shared folders."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from filelock import FileLock

# Before the first import of the package, so there is none above: every annotation in it is then checked at run time.
jaxtyping.install_import_hook("crossdistill", "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".pytest_cache" / "crossdistill"


def pytest_configure(config: pytest.Config) -> None:
    """Settings that child processes inherit too."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # One folder for all workers and sessions, never the user's own: embedded data is built once.
    CACHE.mkdir(parents=True, exist_ok=True)
    os.environ["CROSSDISTILL_CACHE"] = str(CACHE)
    # Text on a terminal is compared: plain, and wide enough not to be folded.
    os.environ.update(NO_COLOR="1", TERM="dumb", COLUMNS="200")
    for name in ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations off, as users run: the package's own messages are then what they see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache folder of the tests, shared by all workers."""
    return CACHE


@pytest.fixture(scope="session")
def built_once() -> Callable[[str], AbstractContextManager[object]]:
    """`with built_once("av-digits"): ...` around building in the cache: one worker builds, the others wait."""
    return lambda what: FileLock(CACHE / f"{what}.lock", timeout=300)


@pytest.fixture(scope="session")
def digits(built_once: Callable[[str], AbstractContextManager[object]]) -> None:
    """The tiny av-digits, in the cache."""
    from crossdistill.recipes import make

    with built_once("av-digits"):
        make("av-digits/supervised", []).tiny().data.load()


def _shared(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; {variable} names another folder")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden numbers: CROSSDISTILL_GOLDEN, else ../shared/golden."""
    return _shared("CROSSDISTILL_GOLDEN", "golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data: CROSSDISTILL_DATA, else ../shared/data."""
    return _shared("CROSSDISTILL_DATA", "data")
