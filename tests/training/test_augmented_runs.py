"""Runs on augmented data: what is banked of seeded views is what live networks give, and who says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_recipes import assert_close, choices, masks, planned, recipe, stage, weights
from builders import Heard
from facts import raises
from torch import Tensor

from crossdistill import Augmentation, Dataset, OwnAugmentation, Recipe, Variation, Variations, run
from crossdistill.bank.folder import find_banks, opened
from crossdistill.errors import RecipeError
from crossdistill.methods import KD, Route
from crossdistill.testing import toy_dataset

NOISY = {"first": Variation(noise=0.5), "second": Variation(gain=0.5)}
TWO = Variations(inputs=NOISY, views=2)


def data(augmentation: Augmentation | None = TWO) -> Dataset:
    return replace(toy_dataset(), augmentation=augmentation)


def taught(source: str = "auto", augmentation: Augmentation | None = TWO, **fields: Any) -> Recipe:
    return recipe(stage(KD(), source, epochs=6), dataset=data(augmentation), **fields)


def specialised(source: str) -> Recipe:
    stages = [one.model_copy(update={"epochs": 6}) for one in (masks(source), stage(Route(), source))]
    return recipe(*stages, dataset=data())


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_views_from_banks_are_what_live_networks_see(tmp_path: Path, control: str | None) -> None:
    made = {source: taught(source, control=control) for source in ("live", "auto")}
    for source, one in made.items():
        run(one, tmp_path / source)
    assert all(one.banked for name, one in choices(made["auto"]).items() if name.startswith("teacher"))
    assert find_banks(tmp_path / "auto")
    assert_close(weights(tmp_path / "live"), weights(tmp_path / "auto"))


@pytest.mark.slow
def test_masks_and_routing_on_banked_views(tmp_path: Path) -> None:
    for source in ("live", "banked"):
        run(specialised(source), tmp_path / source)
    assert_close(weights(tmp_path / "live"), weights(tmp_path / "banked"))


@pytest.mark.slow
def test_other_views_train_another_student(tmp_path: Path) -> None:
    found = []
    for number, augmentation in enumerate((None, TWO, TWO.model_copy(update={"seed": 1}))):
        run(taught(augmentation=augmentation), tmp_path / f"{number}")
        found.append(torch.cat([v.flatten() for n, v in weights(tmp_path / f"{number}").items() if n[:7] == "student"]))
    assert not any(torch.allclose(one, two) for one, two in ((found[0], found[1]), (found[1], found[2])))


def test_a_bank_has_training_rows_in_their_views_and_validation_rows_as_they_are(tmp_path: Path) -> None:
    run(taught(), tmp_path)
    one = opened(find_banks(tmp_path)[0])
    train, validation = (toy_dataset().splits[split] for split in ("train", "validation"))
    assert len(one.rows) == 2 * len(train) + len(validation)
    assert one.key.views == 2
    assert one.key.transform == TWO.key
    assert one.rows.view is not None
    assert set(one.rows.ids[one.rows.view == 0].tolist()) == set(validation.tolist())
    for view in (1, 2):
        assert set(one.rows.ids[one.rows.view == view].tolist()) == set(train.tolist())


def test_views_cost_banks_and_are_said(tmp_path: Path) -> None:
    found = choices(taught())["teacher-0 logits"]
    rows = 2 * len(toy_dataset().splits["train"]) + len(toy_dataset().splits["validation"])
    assert found.bytes == rows * 4 * 4
    assert found.reason == "frozen, in 2 views of each training row"
    many = choices(taught(augmentation=TWO.model_copy(update={"views": 50})))["teacher-0 logits"]
    assert not many.banked
    assert "the stage reads 1,152 rows in all, and a bank would be filled for 7,248" in many.reason
    heard = Heard()
    run(taught(), tmp_path, display=heard)
    assert any("banked, frozen, in 2 views of each training row" in line for line in heard.lines)


class Remembering:
    """It holds a source of random numbers, whose state no key says."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.source = factor, torch.Generator()

    def change(self, inputs: Any, ids: Tensor, view: Tensor) -> Any:
        return {name: self.factor * value for name, value in inputs.items()}


@pytest.mark.parametrize(
    ("augmentation", "facts"),
    [
        (Variations(inputs=NOISY), ("each epoch", "views")),
        (OwnAugmentation(Remembering().change, views=2), ("key", "augmentation")),
    ],
)
def test_what_has_no_end_or_no_key_stays_live(augmentation: Augmentation, facts: tuple[str, ...]) -> None:
    found = choices(taught(augmentation=augmentation))
    assert not any(one.banked for one in found.values())
    with raises(RecipeError, "'banked'", *facts):
        planned(taught("banked", augmentation))


def halved(inputs: Any, ids: Tensor, view: Tensor) -> Any:
    return {name: value.half() for name, value in inputs.items()}


def first_alone(inputs: Any, ids: Tensor, view: Tensor) -> Any:
    return {"first": inputs["first"]}


def failing(inputs: Any, ids: Tensor, view: Tensor) -> Any:
    return inputs["third"]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (halved, ("augmentation", "'first'", "float32 (2, 6)", "float16 (2, 6)")),
        (first_alone, ("augmentation", "'second'", "nothing")),
        (failing, ("augmentation", "2 rows", "KeyError: 'third'")),
    ],
)
def test_a_function_that_gives_something_else_is_found_before_training(change: Any, facts: tuple[str, ...]) -> None:
    with raises(RecipeError, *facts):
        planned(taught(augmentation=OwnAugmentation(change, views=2)))


def test_settings_that_are_not_for_the_data_are_collected() -> None:
    strange = Variations(inputs={"frist": Variation(flip=True), "second": Variation(shift=(1,) * 5)})
    with raises(RecipeError, "'frist'", "'first'", "inputs.second", "5 numbers", "embde", "3 faults"):
        planned(recipe(stage(KD(), trains=("student", "teacher-0:embde")), dataset=data(strange)))


def test_a_stage_is_not_shared_with_other_views() -> None:
    kinds = [
        None,
        TWO,
        Variations(inputs=NOISY, views=3),
        Variations(inputs=NOISY),
        # Nothing tells what these are but what they make.
        OwnAugmentation(Remembering(2.0).change),
        OwnAugmentation(Remembering(3.0).change),
    ]
    keys = [planned(taught("live", one)).jobs[0].key for one in kinds]
    assert len(set(keys)) == len(keys)
    assert keys[0] == planned(recipe(stage(KD(), "live", epochs=6))).jobs[0].key
