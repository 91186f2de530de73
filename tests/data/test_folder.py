"""`data.name=folder`: folders of classes, of splits and without; every kind of bad folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_files import class_folders, damage, write_picture

from crossdistill.data.folder import FolderConfig
from crossdistill.errors import DataError

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


def test_folders_of_classes_of_splits_and_without(tmp_path: Path) -> None:
    plain = FolderConfig(path=class_folders(tmp_path / "plain")).load()
    assert plain.classes == ("cat", "dog")
    class_folders(tmp_path / "split" / "train")
    class_folders(tmp_path / "split" / "val", each=2)
    class_folders(tmp_path / "split" / "test", each=2)
    split = FolderConfig(path=tmp_path / "split").load()
    assert [len(rows) for rows in split.splits.values()] == [12, 4, 4]
    for number in range(6):
        write_picture(tmp_path / "flat" / f"{number}.png", number)
    (tmp_path / "flat" / "notes.md").write_text("x")
    flat = FolderConfig(path=tmp_path / "flat").load()
    assert flat.targets.tolist() == [-100] * 6
    assert "1 other files" in flat.how_split


def test_a_folder_of_one_split_alone_holds_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    data = FolderConfig(path=tmp_path).load()
    assert data.classes == ("cat", "dog")
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(12))
    assert "the folder train alone is no split" in data.how_split


FOLDERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "no folder": (lambda f: f / "none", ("none", "no such folder")),
    "a file": (lambda f: write_picture(f / "a.png", 0), ("a.png", "table")),
    "an empty folder": (lambda f: (f / "x").mkdir() or f / "x", ("no pictures", "empty")),
    "other files": (lambda f: (f / "a.doc").write_text("x") and f, ("no pictures", ".doc")),
    "files beside classes": (
        lambda f: write_picture(class_folders(f) / "z.png", 50).parent,
        ("1 files", "z.png", "cat, dog"),
    ),
    "folders of splits beside another": (
        lambda f: [class_folders(f / name) for name in ("train", "test", "extra")] and f,
        ("test, train name splits", "extra"),
    ),
    "two kinds": (
        lambda f: (class_folders(f) / "cat" / "x.wav").write_text("") or f,
        ("12 pictures", "1 recordings", "data.type"),
    ),
    "a broken file": (lambda f: damage(class_folders(f) / "dog" / "003.png") or f, ("1 of 12", "dog/003.png")),
    "two pictures": (lambda f: class_folders(f, ("a", "b"), 1), ("2 rows",)),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders_are_named_before_training(case: str, tmp_path: Path) -> None:
    make, facts = FOLDERS[case]
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        FolderConfig(path=make(folder)).load()
    for fact in facts:
        assert fact in str(caught.value), str(caught.value)
