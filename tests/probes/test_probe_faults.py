"""Probes that would give a score of nothing: one class, splits without clips, shots that no class has, one network."""

from pathlib import Path

import layouts
import pytest
from facts import raises, states

from crossdistill.errors import DataError
from crossdistill.probes.clips import Clip, Fold, ProbeData
from crossdistill.probes.probing import Settings, _few_remarks, _readable
from crossdistill.probes.report import ProbeReport, ProbeScore
from crossdistill.probes.tasks import find_task


def table(root: Path, column: str, targets: str, splits: tuple[str, ...] = ("train", "train", "val", "test")) -> Path:
    """A table whose targets and splits are these, and its files, which are empty."""
    layouts.touched(root, *(f"{number}.wav" for number in range(len(targets))))
    lines = [
        f"{number}.wav,{target},{split}" for number, (target, split) in enumerate(zip(targets, splits, strict=True))
    ]
    file = root / "clips.csv"
    file.write_text("\n".join([f"path,target,{column}", *lines]))
    return file


@pytest.mark.parametrize(
    ("task", "targets"), [("manifest", "aaaa"), ("manifest", "aaab"), ("manifest-numbers", "1123")]
)
def test_data_with_nothing_to_tell_apart_are_refused(tmp_path: Path, task: str, targets: str) -> None:
    file = table(tmp_path, "split", targets)
    with raises(DataError, file, repr(task), 2, "training", targets[0]):
        _readable(find_task(task), file, Settings())


def test_numbers_that_are_equal_in_the_test_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path, "split", "12344", ("train", "train", "val", "test", "test"))
    with raises(DataError, file, "test", 2, 4):
        _readable(find_task("manifest-numbers"), file, Settings())


def test_columns_of_a_table_that_are_not_read_are_said(tmp_path: Path) -> None:
    with raises(DataError, "'Split'", "'split'"):
        _readable(find_task("manifest"), table(tmp_path, "Split", "abab"), Settings())
    file = table(tmp_path, "split", "abab")
    assert not find_task("manifest").read(file).remark
    file.write_text(file.read_text().replace("\n", ",ann\n").replace("split,ann", "split,group") + ",ann")
    states(find_task("manifest").read(file).remark, "group")


def test_a_split_without_clips_says_which_clips_are_in_it(tmp_path: Path) -> None:
    root = layouts.touched(tmp_path, *(f"recordings/{digit}_ann_{n}.wav" for digit in range(3) for n in range(10)))
    with raises(DataError, "train", 30, 0, 4, 5, 9, 10):
        find_task("spoken-digit").read(root)


def test_shots_that_classes_do_not_have_are_said() -> None:
    clips = tuple(Clip(str(n), Path(f"{n}.wav"), ("a" if n < 6 else "b",)) for n in range(10))
    data = ProbeData(clips, (Fold(tuple(range(8)), (8,), (9,)),))
    assert not _few_remarks(find_task("manifest"), data, [2])
    few, all_of_them = _few_remarks(find_task("manifest"), data, [4, 500])
    states(few, "manifest", 4, 1, 2)
    states(all_of_them, 500, 6)


def test_one_network_has_no_score_relative_to_the_best() -> None:
    scores = tuple(
        ProbeScore("a", name, None, "accuracy", (value,), 0.1, 9, 9) for name, value in (("x", 0.6), ("y", 0.8))
    )
    alone, both = (ProbeReport(scores[:number], "linear", "last", 1) for number in (1, 2))
    assert "of 1000" not in alone.markdown()
    assert alone.as_data()["overall"][0]["superb"] is None
    assert "| 714 | 1000 |" in both.markdown()
    # Nor has one where none is better than a constant.
    poor = tuple(ProbeScore("a", name, None, "accuracy", (0.1,), 0.1, 9, 9) for name in ("x", "y"))
    assert "nan" not in ProbeReport(poor, "linear", "last", 1).markdown()
