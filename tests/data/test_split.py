import numpy as np
import pytest
import torch
from facts import raises

from crossdistill.data.split import SPLITS, choose_rows, paper_split, random_split, split_sources
from crossdistill.errors import DataError, SettingError


@pytest.mark.parametrize(
    ("rows", "column", "first"),
    [
        (70000, 0, [30455, 27768, 2562, 46143]),
        (70000, 1, [21462, 41632, 22111, 64158]),
        (1440, 0, [1081, 1197, 716, 753]),
        (1440, 1, [853, 812, 440, 616]),
        (16058, 0, [6357, 15755, 3902, 859]),
        (16058, 1, [13839, 6028, 3531, 10344]),
        (1449, 0, [998, 731, 635, 964]),
        (1449, 1, [1093, 82, 1344, 730]),
    ],
)
def test_the_papers_columns(rows: int, column: int, first: list[int]) -> None:
    assert paper_split(rows, column)["train"][:4].tolist() == first


def test_the_papers_last_column_needs_all_before_it() -> None:
    generator = np.random.RandomState(19980427)
    wanted = [generator.permutation(1440) for _ in range(20)][19]
    splits = paper_split(1440, 19)
    assert torch.cat([splits[split] for split in SPLITS]).tolist() == wanted.tolist()
    assert [len(splits[split]) for split in SPLITS] == [864, 288, 288]
    with raises(SettingError, "0 to 19"):
        paper_split(1440, 20)


def test_a_random_split_uses_every_row_once() -> None:
    splits = random_split(103, seed=4)
    assert torch.cat(list(splits.values())).sort().values.tolist() == list(range(103))
    assert len(splits["train"]) == 61


@pytest.mark.parametrize("count", [3, 4, 6, 10, 92])
def test_sources_are_in_one_split_each(count: int) -> None:
    names = [f"s{i}" for i in range(count)] * 3
    shares = split_sources(names, 0, (0.6, 0.2), "speakers")
    assert sorted(name for own in shares.values() for name in own) == sorted(set(names))
    assert all(shares[split] for split in SPLITS)
    assert shares == split_sources(list(reversed(names)), 0, (0.6, 0.2), "speakers")
    with raises(DataError, "speakers", "2: a, b"):
        split_sources(["b", "a", "a"], 0, (0.6, 0.2), "speakers")


def test_choosing_rows() -> None:
    assert choose_rows(5, None, 0).tolist() == [0, 1, 2, 3, 4]
    some = choose_rows(1000, 100, 0)
    assert len(set(some.tolist())) == 100
    assert (np.diff(some) > 0).all()
    assert some.tolist() == choose_rows(1000, 100, 0).tolist() != choose_rows(1000, 100, 1).tolist()
    with raises(SettingError, 5):
        choose_rows(5, 6, 0)
