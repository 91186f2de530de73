"""Tensors in files: the same numbers, no room in memory, and nothing left behind."""

from pathlib import Path

import pytest
import torch
from facts import raises

from crossdistill.autograd.mapped import MappedTensor, parts
from crossdistill.errors import StorageError


def held_kb() -> int:
    """What mapped files hold of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile")).split()[1])


@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("few", [0, 2**20])
def test_a_copy_is_equal_and_goes_back(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, few: int) -> None:
    value = torch.randn(shape).mul(100).to(dtype)
    kept = MappedTensor.copy(value, tmp_path, few_bytes=few, part_bytes=16)
    assert kept.tensor.dtype == dtype
    assert torch.equal(kept.tensor, value)
    target = torch.zeros_like(value)
    value += 1
    kept.copy_to(target, part_bytes=16)
    assert torch.equal(target + 1, value), "the copy did not move with what it was copied from"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads what Linux says of a process")
def test_released_pages_are_not_held_and_numbers_stay(tmp_path: Path) -> None:
    before = held_kb()
    kept = MappedTensor.zeros(torch.empty(2**24), tmp_path)
    kept.tensor.fill_(3)
    assert held_kb() - before > 60_000
    kept.release()
    assert held_kb() - before < 6_000
    assert bool((kept.tensor == 3).all())


def test_parts_are_whole_groups_of_rows() -> None:
    found = list(parts(torch.zeros(14, 5), whole=2, part_bytes=100))
    assert [(one.start, one.stop) for one in found] == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert len(list(parts(torch.zeros(3, 1000), part_bytes=100))) == 3, "a row at least"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with raises(StorageError, "taken"):
        MappedTensor.zeros(torch.empty(2**20), tmp_path / "taken")
