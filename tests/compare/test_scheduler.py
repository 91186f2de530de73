"""Who may start: no stage is trained by two workers at the same time."""

from pathlib import Path

from crossdistill.compare.scheduler import Board

STAGES = [
    {"t0": "teacher", "a": "kd"},
    {"t0": "teacher", "b": "fitnets"},
    {"t1": "teacher", "c": "kd"},
    {"d": "supervised"},
]


def test_a_cell_whose_stage_is_being_trained_waits_for_it(tmp_path: Path) -> None:
    board = Board(STAGES, range(4), tmp_path)
    assert [board.choose() for _ in range(4)] == [0, 2, 3, None]
    # The teacher is there, long before the first cell has ended.
    board.trained(0, "teacher")
    assert board.choose() == 1
    assert board.choose() is None
    assert board.waiting == []


def test_what_lies_in_the_shared_folder_is_done(tmp_path: Path) -> None:
    (tmp_path / "t0").mkdir()
    board = Board(STAGES, range(4), tmp_path)
    assert not board.done("t0")
    (tmp_path / "t0" / "outcome.json").touch()
    assert board.done("t0")
    assert [board.choose(), board.choose()] == [0, 1]


def test_after_a_cell_that_failed_the_next_one_trains_the_stage(tmp_path: Path) -> None:
    board = Board(STAGES[:2], range(2), tmp_path)
    assert board.choose() == 0
    assert board.choose() is None
    board.over(0, well=False)
    assert not board.done("t0")
    assert board.choose() == 1


def test_after_a_cell_that_ended_well_all_of_its_stages_are_done(tmp_path: Path) -> None:
    board = Board(STAGES[:2], range(2), tmp_path)
    assert board.choose() == 0
    board.over(0, well=True)
    assert board.done("t0")
    assert board.done("a")
    assert not board.done("b")
