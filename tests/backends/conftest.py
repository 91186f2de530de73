"""Folders with small models of transformers, made once a session; tests skip where the package is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crossdistill import Dataset, InputSpec


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model by name; the same for every test, which must not change it."""
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    from small_models import MODELS

    place = tmp_path_factory.mktemp("models")

    def made(name: str) -> Path:
        path = place / name
        if not path.is_dir():
            torch.manual_seed(0)
            MODELS[name](path)
        return path

    return made


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Grey pictures (1, 8, 8) of ten classes: a bright column or row at another place for each class."""
    classes = torch.arange(10).repeat(9)
    pictures = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    for row, number in enumerate(classes.tolist()):
        pictures[row, 0, number % 8, :] += 0.4
        pictures[row, 0, :, number // 2] += 0.3
    spec = InputSpec("image", (1, 8, 8))
    return Dataset.from_arrays(
        "digits", {"image": pictures}, [str(n) for n in classes.tolist()], input_specs={"image": spec}
    )
