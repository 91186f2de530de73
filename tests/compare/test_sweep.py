"""Tuning: the same number of trials for each method, chosen on the validation split, on seeds that no cell uses."""

from collections import Counter

import pytest
from facts import raises

from crossdistill.compare.grid import Cell, Grid
from crossdistill.compare.sweep import FIRST_SEED, Sweep, path_of, tunings, with_choices
from crossdistill.errors import RecipeError, SettingError
from crossdistill.recipes import make


def grid(*sweep: str, methods: str = "supervised,kd,mst-distill", control: str | None = None) -> Grid:
    return Grid.parse("av-digits", methods=methods, students="image", seeds=1, sweep=sweep, control=control)


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("temperature=1,2.5,4", "temperature", (1, 2.5, 4)),
        ("learning_rate=1e-3, 1e-2", "learning_rate", (0.001, 0.01)),
        ("routing=balanced,learned", "routing", ("balanced", "learned")),
        ("decay_every=null,30", "decay_every", (None, 30)),
        ("taps=[a,b],[c]", "taps", (["a", "b"], ["c"])),
    ],
)
def test_a_sweep_is_a_field_and_its_values(text: str, field: str, values: tuple[object, ...]) -> None:
    assert Sweep.parse(text) == Sweep(field, values)


@pytest.mark.parametrize("text", ["temperature", "=1,2", "temperature=", "alpha=[1,2", "alpha=1,2,1"])
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with raises(SettingError, "--sweep"):
        Sweep.parse(text)


@pytest.mark.parametrize(
    ("recipe", "field", "path"),
    [
        ("av-digits/kd", "temperature", "stages.kd.method.temperature"),
        ("av-digits/kd", "learning_rate", "stages.kd.optimizer.learning_rate"),
        ("av-digits/kd", "optimizer.weight_decay", "stages.kd.optimizer.weight_decay"),
        ("av-digits/kd", "epochs", "stages.kd.epochs"),
        ("av-digits/supervised", "epochs", "stages.supervised-image.epochs"),
        ("av-digits/supervised", "temperature", None),
        ("av-digits/mst-distill", "heads", "stages.specialise.method.heads"),
        ("av-digits/kd", "stages.supervised-mm.epochs", "stages.supervised-mm.epochs"),
        ("av-digits/supervised", "stages.kd.epochs", None),
        ("av-digits/kd", "temprature", None),
    ],
)
def test_a_bare_field_is_searched_in_the_students_stages(recipe: str, field: str, path: str | None) -> None:
    assert path_of(make(recipe, []), field) == path


def test_every_method_spends_the_same_number_of_trials() -> None:
    made = grid("temperature=1,2,4", "learning_rate=0.001,0.002")
    by_method = {tuning.setting.method: tuning for tuning in tunings(made, made.cells())}
    assert {name: sum(len(trial.cells) for trial in tuning.trials) for name, tuning in by_method.items()} == {
        "supervised": 6,
        "kd": 6,
        "mst-distill": 6,
    }
    # A method with fewer combinations runs each on more seeds.
    assert [len(trial.cells) for trial in by_method["supervised"].trials] == [3, 3]
    assert by_method["supervised"].missing == ("temperature",)
    assert [len(trial.cells) for trial in by_method["kd"].trials] == [1] * 6
    used = Counter(cell.seed for tuning in by_method.values() for trial in tuning.trials for cell in trial.cells)
    assert min(used) == FIRST_SEED
    names = [cell.name for tuning in by_method.values() for trial in tuning.trials for cell in trial.cells]
    assert len(set(names)) == len(names)


def test_a_trial_has_its_values_in_its_recipe() -> None:
    made = grid("temperature=1,3", "learning_rate=0.004", methods="kd")
    (tuning,) = tunings(made, made.cells())
    recipes = [trial.cells[0].recipe() for trial in tuning.trials]
    assert [recipe.stages[-1].method.model_dump()["temperature"] for recipe in recipes] == [1, 3]
    assert [recipe.stages[-1].optimizer.learning_rate for recipe in recipes] == [0.004, 0.004]
    # All trials have the same teachers.
    assert recipes[0].stages[0] == recipes[1].stages[0]


def test_a_single_value_is_set_without_a_trial() -> None:
    made = grid("temperature=3", methods="kd")
    (tuning,) = tunings(made, made.cells())
    best, scores = tuning.chosen(lambda cell: pytest.fail("no trial should run"))
    assert best.settings == ("stages.kd.method.temperature=3",)
    assert scores == [[]]


def test_the_best_mean_is_chosen_and_the_first_of_equals() -> None:
    made = grid("temperature=1,2,4", "learning_rate=0.001,0.002", methods="supervised,kd")
    alone, kd = tunings(made, made.cells())
    scores_of_trials = iter([0.5, 0.6, 0.7, 0.9, 0.1, 0.2])
    best, scores = alone.chosen(lambda cell: next(scores_of_trials))
    assert best.values == {"learning_rate": 0.001}
    assert scores == [[0.5, 0.6, 0.7], [0.9, 0.1, 0.2]]
    best, _ = kd.chosen(lambda cell: 0.5)
    assert best.values == {"temperature": 1, "learning_rate": 0.001}


def test_a_trial_that_failed_on_a_seed_is_not_compared_with_complete_ones() -> None:
    made = grid("temperature=1,2,4", "learning_rate=0.001,0.002", methods="supervised,kd")
    alone, kd = tunings(made, made.cells())
    scores_of_trials = iter([None, 0.9, 0.9, 0.2, 0.2, 0.2])
    best, _ = alone.chosen(lambda cell: next(scores_of_trials))
    assert best.values == {"learning_rate": 0.002}
    with raises(RecipeError, "chosen"):
        kd.chosen(lambda cell: None)


def test_the_chosen_values_are_used_by_every_seed_and_by_the_control() -> None:
    made = grid("temperature=1,3", methods="supervised,kd", control="shuffled")
    cells = made.cells()
    choices = {
        tuning.setting: tuning.trials[1].settings for tuning in tunings(made, cells) if tuning.setting.method == "kd"
    }
    settings = {cell.name: cell.settings for cell in with_choices(cells, choices)}
    chosen = ("stages.kd.method.temperature=3",)
    assert settings["kd-image-mm-1-seed0"] == settings["kd-image-mm-1-shuffled-seed0"] == chosen
    assert settings["supervised-image-1-seed0"] == ()


@pytest.mark.parametrize(
    ("sweep", "fact"),
    [
        (("temperature=1,-2",), "temperature"),
        (("temprature=1,2",), "temprature"),
        (("temperature=1,2", "temperature=3,4"), "temperature"),
    ],
)
def test_faults_are_raised_before_anything_trains(sweep: tuple[str, ...], fact: str) -> None:
    made = grid(*sweep)
    with raises((RecipeError, SettingError), fact):
        tunings(made, made.cells())


def test_controls_are_not_tuned_by_themselves() -> None:
    made = grid("temperature=1,3", methods="kd", control="shuffled")
    assert [tuning.setting.control for tuning in tunings(made, made.cells())] == [None]


def test_a_value_that_is_text_keeps_its_meaning() -> None:
    made = grid("decay_every=null,5", methods="kd")
    (tuning,) = tunings(made, made.cells())
    assert isinstance(tuning.trials[0].cells[0], Cell)
    assert tuning.trials[0].cells[0].recipe().stages[-1].method.model_dump()["decay_every"] is None
