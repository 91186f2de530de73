"""The cells of a grid."""

from dataclasses import replace
from typing import Any

import pytest
from facts import raises, states

from crossdistill.compare.grid import Cell, Grid, percent, standard_methods, unplaced
from crossdistill.errors import RecipeError, SettingError
from crossdistill.recipes.stages import PLANS


def grid(**changes: Any) -> Grid:
    return Grid.parse("av-digits", **{"methods": "supervised,kd", "students": "image", "seeds": 2, **changes})


def names(made: Grid) -> list[str]:
    return [cell.name for cell in made.cells()]


def test_all_is_every_method_once_without_variants() -> None:
    assert {"supervised", "kd", "mst-distill"} <= set(standard_methods())
    assert not [name for name in standard_methods() if name.startswith("mst-distill-")]
    assert grid(methods="all").methods == standard_methods()
    # A named variant is added, and no method appears twice.
    assert grid(methods="all,mst-distill-a,kd").methods == (*standard_methods(), "mst-distill-a")
    assert {name for name in PLANS if name not in standard_methods()} >= {"mst-distill-a", "mst-distill-release"}


def test_the_grid_is_the_product_of_its_axes() -> None:
    made = grid(students="image,audio", teachers="mm,cm", labelled="1.0,0.1", seeds=3)
    # supervised has no teachers, kd two kinds.
    assert len(names(made)) == 3 * 2 * 2 * (1 + 2)
    assert len(set(names(made))) == len(names(made))
    assert "kd-audio-cm-0.1-seed2" in names(made)


def test_seeds_are_outermost_so_that_workers_start_on_different_stages() -> None:
    assert [cell.seed for cell in grid(seeds=2).cells()] == [0, 0, 1, 1]


def test_controls_are_run_at_the_scarcest_labels_and_only_of_methods_with_teachers() -> None:
    controls = [name for name in names(grid(control="shuffled", labelled="1.0,0.1")) if "shuffled" in name]
    assert controls == ["kd-image-mm-0.1-shuffled-seed0", "kd-image-mm-0.1-shuffled-seed1"]


@pytest.mark.parametrize(
    ("requested", "kinds"),
    [(None, ["mm+cm"]), ("mm", ["mm"]), ("cm", ["cm"]), ("mm,cm", ["mm+cm"]), ("mm,cm,mm+cm", ["mm+cm"])],
)
def test_a_method_with_both_teachers_has_both_where_both_are_requested(requested: str | None, kinds: list[str]) -> None:
    made = grid(methods="mst-distill", teachers=requested, seeds=1)
    assert [cell.teachers for cell in made.cells()] == kinds


def test_a_method_without_a_form_for_the_teachers_is_named_with_those_that_it_has() -> None:
    made = grid(methods="kd,mst-distill-a", teachers="cm", seeds=1)
    assert names(made) == ["kd-image-cm-1-seed0"]
    assert made.undefined() == {"mst-distill-a": "mst-distill-a has no form with teachers cm; possible: mm+cm"}


def test_a_cell_is_the_recipe_of_its_name_with_its_settings() -> None:
    cell = Cell("av-digits", "kd", "audio", "cm", 0.1, "shuffled", 3, ("stages.kd.method.temperature=7",))
    recipe = cell.recipe()
    assert (recipe.learner, recipe.seed, recipe.control, recipe.kind) == ("audio", 3, "shuffled", "cm")
    assert (list(recipe.teachers), recipe.stages[-1].method.model_dump()["temperature"]) == (["image"], 7)
    assert Cell.from_data(cell.as_data()) == cell


def test_a_setting_of_a_stage_is_for_the_cells_that_have_it() -> None:
    texts = ("stages.kd.method.temperature=2", "channels_last=true", "stages.0.epochs=3")
    made = Grid.parse("av-digits", settings=texts, methods="supervised,kd", students="image", seeds=1)
    alone, kd = (cell.recipe() for cell in made.cells())
    assert [stage.epochs for stage in (alone.stages[0], kd.stages[0])] == [3, 3]
    assert alone.channels_last
    assert kd.channels_last
    assert kd.stages[1].method.model_dump()["temperature"] == 2
    assert unplaced(made.cells()) == []
    (fault,) = unplaced([replace(cell, settings=("stages.kdd.epochs=1",)) for cell in made.cells()])
    states(fault, "--set stages.kdd.epochs=1", "'kdd'", "'kd'", "kd, supervised-image, supervised-mm")


def test_fewer_epochs_are_a_part_of_each_stage_and_at_least_one() -> None:
    whole = Cell("av-digits", "kd", "image", "mm", 1.0, None, 0).recipe()
    part = Cell("av-digits", "kd", "image", "mm", 1.0, None, 0, epochs=0.25).recipe()
    least = Cell("av-digits", "kd", "image", "mm", 1.0, None, 0, epochs=0.001).recipe()
    assert [stage.epochs for stage in part.stages] == [round(stage.epochs / 4) for stage in whole.stages]
    assert [stage.epochs for stage in least.stages] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"methods": "kdd"}, "'kd'"),
        ({"students": "video"}, "audio, image"),
        ({"labelled": "0"}, "(0, 1]"),
        ({"labelled": "many"}, "a number"),
        ({"teachers": "mn"}, "'mm'"),
        ({"preset": "dmeo"}, "'demo'"),
        ({"control": "shufled"}, "'shuffled'"),
        ({"budget": -1.0}, "0"),
    ],
)
def test_an_unknown_value_is_refused_with_the_possible_ones(changes: dict[str, Any], fact: str) -> None:
    with raises((RecipeError, SettingError), fact):
        grid(**changes)


@pytest.mark.parametrize(("fraction", "text"), [(1.0, "100%"), (0.05, "5%"), (0.005, "0.5%")])
def test_small_fractions_stay_visible(fraction: float, text: str) -> None:
    assert percent(fraction) == text
