"""Every method's recipe leaves the trace that it left before: each term, and the size of the gradient, step by step.

A change that alters no numbers leaves these files as they are. One that is meant to alter them writes them anew
(`REGENERATE_TRACES=1`, see CONTRIBUTING.md), and the difference is part of the change. Plain SGD: Adam divides by the
gradient's own size, and so hides a wrong factor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from traces import TRACES, compare_trace, differences, plainly_trained

from crossdistill import Dataset, NetworkConfig, Recipe
from crossdistill.data.config import DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.recipes import av_digits, make
from crossdistill.recipes.setup import ExperimentSetup, Length
from crossdistill.recipes.speech_music import METHODS as OF_SPEECH_AND_MUSIC
from crossdistill.recipes.stages import PLANS, recipe
from crossdistill.testing import toy_dataset

PUBLISHED = ("supervised", "kd", "mst-distill")
PACES = {"at": 1e-3, "c2kd": 1e-3, "crd": 5e-3, "lskd": 1e-3, "nst": 1e-3, "pkt": 1e-4, "sp": 1e-4}
"""Learning rates of methods whose published weights make large gradients, and rounding with them."""
PUBLISHED_PACES = {"mst-distill": 1e-3}
"""At published sizes: divergences of T² = 16 have gradients of size 500, which other processors round apart."""


class ToyConfig(DataConfig):
    """Patterns of the sizes that the networks read; every third label is hidden from the student."""

    name: Literal["toy"] = "toy"
    shapes: Mapping[str, tuple[int, ...]] = {"image": (1, 8, 8), "audio": (1, 32, 32)}

    def build(self, progress: OnProgress) -> Dataset:
        return toy_dataset(self.shapes, rows=100, classes=10, labelled=0.67)

    def cached(self) -> None:
        return None

    def tiny(self) -> "ToyConfig":
        return self


def _recipe(method: str) -> Recipe:
    length = Length(epochs=2, learning_rate=0.02)
    setup = ExperimentSetup(
        data=ToyConfig(),
        networks={"image": NetworkConfig(model="small-image"), "audio": NetworkConfig(model="small-audio")},
        multimodal=NetworkConfig(model="small-mm"),
        taps={"image": ("conv2", "fc1"), "audio": ("conv3", "fc1"), "mm": ("concat_identity", "fc1")},
        activated=av_digits.setup().activated,
        batch_size=24,
        supervised=length,
        collaborate=length,
        specialise=length,
        distil=length,
    )
    return _plain(recipe(setup, method, student="image", teachers=None, seed=0, control=None))


def _published(method: str) -> Recipe:
    """Networks and taps of av-mnist at their published sizes, with narrower masks, on patterns of its shapes."""
    made = make(f"av-mnist/{method}", ["epochs=2", "batch_size=24", "width_factor=8"], 0)
    data = ToyConfig(shapes={"image": (1, 28, 28), "audio": (1, 112, 112)})
    return _plain(made.model_copy(update={"data": data}), PUBLISHED_PACES.get(method))


def _plain(made: Recipe, pace: float | None = None) -> Recipe:
    return plainly_trained(made, pace or PACES.get((made.method or "").removesuffix("-release"), 0.02))


# Presets that differ from their method in settings of a network that toy data do not have, or in the draw alone.
ALMOST_ALIKE = {name for name in PLANS if name.startswith("richkd") and name.endswith("-release")}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in ALMOST_ALIKE else name for name in PLANS]
)
def test_a_recipe_leaves_its_trace(method: str, tmp_path: Path) -> None:
    compare_trace(method, _recipe(method), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("method", PUBLISHED)
def test_a_recipe_of_published_sizes_leaves_its_trace(method: str, tmp_path: Path) -> None:
    compare_trace(f"published-{method}", _published(method), tmp_path / "out")


def test_every_trace_belongs_to_a_method() -> None:
    wanted = {*PLANS, *(f"published-{method}" for method in PUBLISHED)}
    wanted |= {f"speech-music-{method}" for method in OF_SPEECH_AND_MUSIC}
    assert {path.stem for path in TRACES.glob("*.json")} == wanted


def test_a_wrong_factor_is_seen() -> None:
    then = [{"stage": "kd", "epoch": 0, "step": 0, "loss": 2.0, "gradient_norm": 0.5}]
    assert not differences(then, [then[0] | {"loss": 2.0002}])
    assert differences(then, [then[0] | {"gradient_norm": 0.501}]) == [
        "line 0, kd, epoch 0, step 0: gradient_norm was 0.5, is 0.501"
    ]
    assert differences(then, [])
    assert differences(then, [{**then[0], "raw/kd": 1.0}])
