"""Projected time of a grid, and the seeds and epochs that fit into a budget."""

from typing import Any

import pytest
from facts import raises

from crossdistill.compare.budget import CELL_S, FILLED, START_S, Projection, Timed, pick, project
from crossdistill.compare.feasibility import check_feasibility
from crossdistill.compare.grid import Grid
from crossdistill.errors import RunError
from crossdistill.runtime.progress import Quiet

# A teacher that three cells share, and a student in each: 100 + 3 x 50 seconds with all epochs.
ONE = Projection(
    {"t": Timed(10.0, 10), "a": Timed(5.0, 10), "b": Timed(5.0, 10), "c": Timed(5.0, 10)},
    [("t", "a"), ("t", "b"), ("t", "c")],
)


def grid(minutes: float, **changes: Any) -> Grid:
    return Grid.parse("av-digits", methods="kd", students="image", budget=minutes, **changes)


def minutes_for(seeds: int, part: float) -> float:
    return (START_S + seeds * (ONE.seconds(1, part) - START_S)) / 60 / FILLED + 1e-6


def test_a_stage_counts_once_however_many_cells_use_it() -> None:
    assert (ONE.shared(), ONE.separate()) == (250, 450)
    assert ONE.seconds(1) == START_S + 250 + 3 * CELL_S


def test_more_workers_are_faster_but_no_cell_is_cut_in_two() -> None:
    assert ONE.seconds(2) == START_S + 150 + CELL_S
    assert ONE.seconds(100) == START_S + 150 + CELL_S


def test_a_part_of_the_epochs_is_one_epoch_at_least() -> None:
    assert Timed(2.0, 10).seconds(0.5) == 10
    assert Timed(2.0, 10).seconds(0.001) == 2
    assert Timed(2.0, 0).seconds(0.5) == 0


@pytest.mark.parametrize(
    ("seeds", "part"), [(5, 1.0), (4, 1.0), (3, 1.0), (3, 0.75), (3, 0.25), (2, 0.25), (1, 0.25), (1, 0.1)]
)
def test_seeds_go_first_down_to_three_then_epochs_then_both(seeds: int, part: float) -> None:
    picked = pick(grid(minutes_for(seeds, part)), ONE, None, 1)
    assert (picked.seeds, picked.epochs) == (seeds, part)
    assert picked.projected_s <= FILLED * 60 * picked.minutes


def test_at_most_the_given_number_of_seeds() -> None:
    assert pick(grid(10_000.0, seeds=2), ONE, None, 1).seeds == 2
    assert pick(grid(10_000.0), ONE, None, 1).seeds == 5


def test_trials_take_their_part_of_the_budget() -> None:
    alone = pick(grid(minutes_for(4, 1.0)), ONE, None, 1)
    tuned = pick(grid(minutes_for(4, 1.0)), ONE, ONE, 1)
    assert (alone.seeds, tuned.seeds) == (4, 3)


def test_a_budget_into_which_nothing_fits_is_refused_with_what_would_be_needed() -> None:
    with raises(RunError, "minutes", "jobs"):
        pick(grid(0.1), ONE, None, 1)


def test_the_choice_as_text() -> None:
    text = str(pick(grid(minutes_for(1, 0.25)), ONE, None, 1))
    assert "1 seed, every stage with 25% of their usual epochs" in text


@pytest.mark.usefixtures("digits")
def test_every_stage_of_a_real_grid_is_timed_once_for_all_seeds() -> None:
    made = Grid.parse("av-digits", methods="supervised,kd", students="image", labelled="1.0,0.1", seeds=2, tiny=True)
    feasibility = check_feasibility(made.cells(), Quiet())
    projection = project(feasibility, Quiet())
    assert set(projection.stages) == set(feasibility.steps())
    assert all(timed.epoch_s > 0 for timed in projection.stages.values())
    # The same kind of stage has the same time on every seed.
    assert len({timed.epoch_s for timed in projection.stages.values()}) == 3
    assert projection.shared() < projection.separate()
