"""Decoded pictures that are kept in memory: equal rows, decoded once, within their limit."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_files import class_folders, write_picture
from torch import Tensor

from crossdistill.data import file_source
from crossdistill.data.dataset import Dataset
from crossdistill.data.folder import FolderConfig
from crossdistill.data.kept import KeptPictures
from crossdistill.data.workers import Request, end_workers

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


@pytest.fixture(autouse=True)
def _no_workers_left() -> object:
    yield
    end_workers()


def passed(data: Dataset) -> Tensor:
    parts = torch.arange(len(data)).split(5)
    return torch.cat([batch.inputs["image"] for batch in data.batches((Request(part) for part in parts), CPU)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_pass_has_the_same_rows_without_reading_a_file(tmp_path: Path, workers: int) -> None:
    folder = class_folders(tmp_path / "pictures")
    data = FolderConfig(path=folder, workers=workers).load()
    plain = FolderConfig(path=folder, workers=0, keep_mb=0).load()
    first = passed(data)
    assert torch.equal(first, passed(plain))
    for file in folder.rglob("*.png"):
        file.unlink()
    assert torch.equal(passed(data), first)
    with pytest.raises(Exception, match=r"\.png"):
        passed(plain)


def test_the_second_pass_needs_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FolderConfig(path=class_folders(tmp_path / "pictures"), workers=2).load()
    passed(data)
    end_workers()
    monkeypatch.setattr(file_source, "decode_picture", None)
    passed(data)
    assert data.workers._pool is not None
    assert data.workers._pool.ended


def test_pictures_of_other_sizes_are_kept_and_still_rendered_by_workers(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    write_picture(folder / "cat" / "large.png", 99, (30, 20))
    data = FolderConfig(path=folder, workers=2, size=(8, 8)).load()
    source = data.inputs["image"]
    assert isinstance(source, file_source.FileSource)
    first = passed(data)
    assert not source.quick(torch.arange(2))
    assert source.files.kept is not None
    assert all(source.files.kept.there(range(len(data))))
    assert torch.equal(passed(data), first)


def test_more_than_the_limit_and_more_than_eight_bits_are_not_kept() -> None:
    assert KeptPictures.of(np.array([(3, 10, 10)] * 4), 1199) is None
    assert KeptPictures.of(np.full((2, 3), -1), 1199) is None
    assert KeptPictures.of(np.zeros((2, 0), dtype=np.int64), 1199) is None
    kept = KeptPictures.of(np.array([(3, 2, 2), (1, 2, 2), (1, 2, 2), (-1, -1, -1)]), 1199)
    assert kept is not None
    byte = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    # Row 0 has another shape than its facts say, row 2 has 16 bits.
    kept.keep({0: byte, 1: byte, 2: byte.float()})
    assert kept.there([0, 1, 2, 3]) == [False, True, False, False]
    assert torch.equal(kept.picture(1), byte)


def test_an_augmented_epoch_equals_one_without_kept_pictures(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    varied = {"inputs": {"image": {"resized_crop": 0.3, "flip": True}}}
    kept, plain = (FolderConfig(path=folder, workers=2, keep_mb=size, augmentation=varied).load() for size in (256, 0))
    rows = kept.splits["train"]
    for epoch in (0, 1, 2):
        views = kept.views(rows, 0, epoch)
        both = [next(iter(data.batches([Request(rows, view=views)], CPU))).inputs["image"] for data in (kept, plain)]
        assert torch.equal(*both)
