"""A stage is short to write, and says what it is called."""

from typing import Any

import pytest
from facts import raises
from pydantic import ValidationError

from crossdistill import OptimizerConfig, Stage
from crossdistill.methods import KD, Supervised


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"method": "kd"}, "kd"),
        ({"method": KD(temperature=2)}, "kd"),
        ({"method": {"name": "kd", "temperature": 2}}, "kd"),
        ({"method": "supervised", "learner": "mm"}, "supervised-mm"),
        ({"method": "supervised", "learner": "image+Audio"}, "supervised-image-audio"),
        ({"method": "kd", "name": "second"}, "second"),
    ],
)
def test_a_stage_is_called_after_its_method_and_learner(given: dict[str, Any], name: str) -> None:
    assert Stage(epochs=1, **given).name == name


def test_a_method_by_name_has_its_default_settings_and_comes_back_from_plain_values() -> None:
    assert Stage(method="kd", epochs=1).method == KD()
    assert Stage(method={"name": "kd", "alpha": 0.9}, epochs=1).method == KD(alpha=0.9)
    stage = Stage(method="supervised", learner="mm", epochs=3, optimizer=OptimizerConfig(name="sgd"))
    assert Stage.model_validate(stage.model_dump(mode="json")) == stage
    assert isinstance(stage.method, Supervised)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"method": "kdd"}, ("'kdd'", "'kd'")),
        ({"method": 3}, ("method", 3)),
        ({"method": KD}, ("method", "<class")),
        ({"method": {"temperature": 2}}, ("method", "temperature")),
        ({}, ("method",)),
        ({"method": "kd", "name": ""}, ("name",)),
        ({"method": "kd", "name": "Not a folder"}, ("name",)),
    ],
)
def test_what_cannot_be_a_stage_is_said(given: dict[str, Any], facts: tuple[object, ...]) -> None:
    with raises(ValidationError, *facts):
        Stage(epochs=1, **given)
