"""The order of cells: no stage is trained by two workers at the same time."""

from pathlib import Path

from crossdistill.compare.scheduler import Scheduler

STAGES = [
    {"t0": "teacher", "a": "kd"},
    {"t0": "teacher", "b": "fitnets"},
    {"t1": "teacher", "c": "kd"},
    {"d": "supervised"},
]


def test_a_cell_whose_stage_is_being_trained_waits_for_it(tmp_path: Path) -> None:
    scheduler = Scheduler(STAGES, range(4), tmp_path)
    assert [scheduler.choose() for _ in range(4)] == [0, 2, 3, None]
    # The teacher is trained long before the first cell has ended.
    scheduler.trained(0, "teacher")
    assert scheduler.choose() == 1
    assert scheduler.choose() is None
    assert scheduler.waiting == []


def test_what_lies_in_the_shared_folder_is_done(tmp_path: Path) -> None:
    (tmp_path / "t0").mkdir()
    scheduler = Scheduler(STAGES, range(4), tmp_path)
    assert not scheduler.done("t0")
    (tmp_path / "t0" / "outcome.json").touch()
    assert scheduler.done("t0")
    assert [scheduler.choose(), scheduler.choose()] == [0, 1]


def test_after_a_cell_that_failed_the_next_one_trains_the_stage(tmp_path: Path) -> None:
    scheduler = Scheduler(STAGES[:2], range(2), tmp_path)
    assert scheduler.choose() == 0
    assert scheduler.choose() is None
    scheduler.ended(0, succeeded=False)
    assert not scheduler.done("t0")
    assert scheduler.choose() == 1


def test_after_a_cell_that_ended_well_all_of_its_stages_are_done(tmp_path: Path) -> None:
    scheduler = Scheduler(STAGES[:2], range(2), tmp_path)
    assert scheduler.choose() == 0
    scheduler.ended(0, succeeded=True)
    assert scheduler.done("t0")
    assert scheduler.done("a")
    assert not scheduler.done("b")
