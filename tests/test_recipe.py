"""A recipe is data: it survives a file, is short on demand, and knows its own faults before anything trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises
from pydantic import ValidationError

from crossdistill.errors import RecipeError, SettingError
from crossdistill.methods import KD, Collaborate
from crossdistill.recipe import Checkpoints, NetworkConfig, Recipe, checked
from crossdistill.recipes import make, names
from crossdistill.stage import OptimizerConfig, Stage
from crossdistill.testing import toy_dataset, toy_network
from crossdistill.weighting import UncertaintyConfig

NAMES = [name for name in names() if name.startswith("av-") or name.endswith(("/kd", "/dot", "/fitnets"))]
"""Recipes of pictures differ from the others by their optimizer."""

PLAIN: Mapping[str, Any] = {
    "data": "av-digits",
    "student": {"model": "small-image"},
    "teachers": {"mm": {"model": "small-mm"}},
    "stages": [{"method": "kd", "epochs": 2}],
}


def written(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    return path


def live(**changes: Any) -> Recipe:
    given = {
        "data": toy_dataset(),
        "student": toy_network(("first",)),
        "teachers": {"both": toy_network(("first", "second"))},
        "stages": (Stage(method=KD(), epochs=1),),
    }
    return Recipe(**(given | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [[], ["labelled=0.05", "control=shuffled"]])
def test_every_recipe_comes_back_from_its_file_the_same(name: str, settings: list[str], tmp_path: Path) -> None:
    recipe = make(name, [*settings, "student=audio"] if settings and name.startswith("av-") else settings, 3)
    assert Recipe.from_yaml(written(recipe, tmp_path)) == recipe
    assert Recipe.from_yaml(written(recipe.tiny(), tmp_path)) == recipe.tiny()
    assert recipe.live == []


def test_everything_that_can_be_set_comes_back_from_a_file(tmp_path: Path) -> None:
    stage = Stage(
        name="all",
        method=Collaborate(detach=True, temperature=2),
        epochs=3,
        batch_size=32,
        learner="mm",
        teachers=("audio",),
        trains=("mm", "audio:fc1", "student"),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="cosine", rates={"audio": 1e-4}),
        weighting=UncertaintyConfig(regression=("distil",)),
        select="last",
        source="live",
        micro_batches=2,
        clip_norm=1.5,
        steps=7,
        fresh=True,
    )
    recipe = Recipe.model_validate(
        {
            **PLAIN,
            "data": {"name": "av-digits", "labelled": 0.1, "label_seed": 4},
            "teachers": {"mm": {"model": "small-mm", "weights": "some/weights.safetensors"}, "audio": "x"}
            | {"audio": NetworkConfig(model="small-audio", reads=("audio",))},
            "stages": [stage],
            "checkpoints": Checkpoints(minutes=1, steps=5, keep=3),
            "tracking": "tensorboard",
            "student_name": "pupil",
            "kind": "mm+cm",
            "control": "shuffled",
        }
    )
    again = Recipe.from_yaml(written(recipe, tmp_path))
    assert again == recipe
    assert isinstance(again.stages[0].method, Collaborate)
    assert again.stages[0].optimizer.rates == {"audio": 1e-4}


def test_a_file_made_by_hand_may_be_short_and_names_the_student_after_what_it_reads() -> None:
    recipe = checked(PLAIN, "mine")
    assert recipe.stages[0].method == KD()
    assert (recipe.stages[0].name, recipe.learner, recipe.seed) == ("kd", "image", 0)
    assert checked({**PLAIN, "student": {"model": "small-mm"}}, "mine").learner == "image+audio"
    assert checked({**PLAIN, "student_name": "pupil"}, "mine").learner == "pupil"
    assert live().learner == "first"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, "data, student, teachers.both"),
        ({"data": "av-digits"}, "student, teachers.both"),
        ({"student": NetworkConfig(model="small-image"), "teachers": {}}, "data"),
    ],
)
def test_live_objects_are_named_and_refused_with_the_reason(
    changes: dict[str, Any], fields: str, tmp_path: Path
) -> None:
    recipe = live(**changes)
    assert ", ".join(recipe.live) == fields
    path = written(recipe, tmp_path)
    assert path.read_text().startswith(f"# Built from live objects ({fields}), which no file can hold.\n")
    with raises(RecipeError, fields, "crossdistill.run(recipe, out)"):
        Recipe.from_yaml(path)


def test_a_live_recipe_with_an_origin_says_the_command(tmp_path: Path) -> None:
    path = written(live(origin="mine.py:recipe --set width=4"), tmp_path)
    assert "# Run it again with: crossdistill run mine.py:recipe --set width=4" in path.read_text()
    with raises(RecipeError, "crossdistill run mine.py:recipe --set width=4"):
        Recipe.from_yaml(path)


def test_a_live_recipe_says_what_its_objects_were() -> None:
    text = live().to_yaml()
    for words in ("crossdistill.testing.toy.ToyModule", "Dataset 'toy'", toy_dataset().fingerprint, "parameters:"):
        assert words in text


@pytest.mark.parametrize("name", NAMES)
def test_tiny_is_short_and_the_same_otherwise(name: str) -> None:
    recipe = make(name, [], 0)
    tiny = recipe.tiny()
    for one, two in zip(recipe.stages, tiny.stages, strict=True):
        assert two.epochs * (two.steps or 99) <= 8
        assert two.batch_size <= 32
        assert one.method == two.method
        shorter = one.optimizer.within(two.epochs) if two.epochs else one.optimizer
        assert (one.name, one.trained, shorter, one.select) == (two.name, two.trained, two.optimizer, two.select)
    assert (tiny.seed, tiny.teachers, tiny.student) == (recipe.seed, recipe.teachers, recipe.student)


def test_live_data_stay_as_they_are_in_tiny() -> None:
    recipe = live()
    assert recipe.tiny().data is recipe.data


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"teachers": {"student": {"model": "small-mm"}}}, ["'student' means the student itself"]),
        ({"teachers": {"image": {"model": "small-mm"}}}, ["'image' is the student's name already; set student_name"]),
        ({"teachers": {"../mm": {"model": "small-mm"}}}, ["members: '../mm' is no valid name"]),
        ({"teachers": {"a:b": {"model": "small-mm"}}}, ["members: 'a:b' is no valid name"]),
        ({"student_name": "method"}, ["members: 'method' is no valid name"]),
        ({"stages": [{"method": "kd", "epochs": 1}] * 2}, ["the name 'kd' is given twice"]),
        (
            {"stages": [{"method": "kd", "epochs": 1, "learner": "mn", "trains": ["mm:fc1", "imagee", "imagee:x"]}]},
            ["stages.kd-mn: no member is called 'mn'; did you mean 'mm'", "stages.kd-mn: no member is called 'imagee'"],
        ),
        (
            {"stages": [{"method": "kdd", "epochs": 1}], "seed": -1, "student": {"model": "small-imag"}, "sed": 3},
            ["did you mean 'kd'", "seed: wanted at least 0", "did you mean 'small-image'", "did you mean 'seed'"],
        ),
        ({"stages": []}, ["stages: wanted at least 1 of them"]),
        ({"stages": [{"method": "kd", "epochs": 1, "name": "Not Good"}]}, ["stages.0.name: wanted text of the form"]),
        ({"stages": [{"method": "kd", "epochs": 1, "batch_size": 2, "micro_batches": 3}]}, ["3 micro-batches cannot"]),
        ({"student": {"model": "small-image", "options": {"classes": 3}}}, ["leave `classes` out"]),
    ],
)
def test_all_faults_of_a_recipe_are_named_together(changes: Mapping[str, Any], wanted: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        checked({**PLAIN, **changes}, "mine")
    for words in wanted:
        assert any(words in fault for fault in caught.value.faults), (words, caught.value.faults)
    assert len(caught.value.faults) == len(wanted), caught.value.faults


@pytest.mark.parametrize(
    ("text", "fact"), [("- 1\n- 2\n", "list"), ("a: [1, 2", "YAML"), ("\x00\x01", "YAML"), ("seed: 1\n", "required")]
)
def test_a_file_that_is_no_recipe_is_refused(text: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with raises(RecipeError, fact):
        Recipe.from_yaml(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with raises(SettingError, "none.yaml"):
        Recipe.from_yaml(tmp_path / "none.yaml")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch " + str(tmp_path / "made") + "']\n")
    with raises(RecipeError, "YAML"):
        Recipe.from_yaml(path)
    assert not (tmp_path / "made").exists()


def test_a_recipe_does_not_change() -> None:
    recipe = checked(PLAIN, "mine")
    with raises(ValidationError, "frozen_instance"):
        recipe.seed = 3


def test_a_stage_is_named_after_its_method_and_learner() -> None:
    assert Stage(method=KD(), epochs=1).name == "kd"
    assert Stage(method="supervised", epochs=1, learner="M_m").name == "supervised-m-m"
    assert Stage(name="own", method={"name": "kd"}, epochs=1).name == "own"


def test_a_network_of_the_table_is_built_for_the_data() -> None:
    config = NetworkConfig(model="small-image", reads=("thermal",))
    assert config.modalities == ("thermal",)
    torch.manual_seed(0)
    network = config.build(classes=7)
    assert network.reads == ("thermal",)
    assert network.module.fc2.out_features == 7
