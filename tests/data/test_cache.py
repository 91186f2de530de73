import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from facts import raises

from crossdistill.data import cache
from crossdistill.errors import StorageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def builder(calls: list[int], value: int = 1) -> Callable[[Path], None]:
    def build(work: Path) -> None:
        calls.append(value)
        np.save(work / "a.npy", np.full(1000, value))

    return build


def test_built_once_and_then_kept(folder: Path) -> None:
    calls: list[int] = []
    first = cache.keep("data", {"seed": 0}, builder(calls))
    assert cache.keep("data", {"seed": 0}, builder(calls)) == first
    assert calls == [1]
    assert first.parent == folder
    assert first.name.startswith("data-")
    assert len(first.name) == len("data-") + 12
    entry = cache.find("data", {"seed": 0})
    assert (entry.name, entry.path, dict(entry.recipe)) == ("data", first, {"seed": 0})
    assert entry.size_bytes > 8000
    assert cache.entries() == [entry]


def test_another_recipe_is_another_folder() -> None:
    calls: list[int] = []
    first = cache.keep("data", {"seed": 0, "snr": 1.0}, builder(calls))
    second = cache.keep("data", {"seed": 0, "snr": 1.5}, builder(calls))
    assert first != second
    assert calls == [1, 1]
    assert cache.find("data", {"seed": 1}) is None


@pytest.mark.parametrize("harm", ["truncate", "change", "remove", "manifest", "half a manifest"])
def test_damage_is_seen_said_and_mended(harm: str, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    path = cache.keep("data", {}, builder(calls))
    file = path / "a.npy"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-10])
    elif harm == "change":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif harm == "remove":
        file.unlink()
    elif harm == "manifest":
        (path / cache.MANIFEST).unlink()
    else:
        (path / cache.MANIFEST).write_text('{"name": "da')
    assert cache.find("data", {}) is None
    with caplog.at_level(logging.WARNING):
        cache.keep("data", {}, builder(calls))
    assert calls == [1, 1]
    assert "built again" in caplog.text
    assert str(path) in caplog.text
    assert cache.find("data", {}) is not None


def test_a_failed_build_leaves_nothing(folder: Path) -> None:
    def build(work: Path) -> None:
        (work / "half").write_text("x")
        raise ValueError("broken")

    with raises(ValueError, "broken"):
        cache.keep("data", {}, build)
    assert list(folder.iterdir()) == []


def test_the_faster_of_two_builders_is_kept() -> None:
    calls: list[int] = []

    def slow(work: Path) -> None:
        cache.keep("data", {}, builder(calls, value=2))
        builder(calls, value=3)(work)

    path = cache.keep("data", {}, slow)
    assert calls == [2, 3]
    assert np.load(path / "a.npy")[0] == 2
    assert len(list(path.parent.iterdir())) == 1


def test_remains_of_killed_builders_are_swept_away(folder: Path) -> None:
    old, young = folder / ".data-0123456789ab.old", folder / ".data-0123456789ab.young"
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    cache.keep("data", {}, builder([]))
    assert not old.exists()
    assert young.exists()
    assert [entry.name for entry in cache.entries()] == ["data"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "file" / "inside"))
    with raises(StorageError, "CROSSDISTILL_CACHE"):
        cache.keep("data", {}, builder([]))


def test_a_full_disk_is_a_storage_error(folder: Path) -> None:
    def build(work: Path) -> None:
        raise OSError(28, "No space left on device")

    with raises(StorageError, "No space left on device"):
        cache.keep("data", {}, build)
    assert list(folder.iterdir()) == []


def test_the_digest_is_of_the_content_not_of_the_recipe() -> None:
    same = [cache.digest_of(cache.keep("data", {"n": n}, builder([]))) for n in (0, 1)]
    other = cache.digest_of(cache.keep("data", {"n": 2}, builder([], value=5)))
    assert same[0] == same[1] != other


def test_source_files_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    first = cache.content_key([tmp_path / "a"])
    os.utime(tmp_path / "a", (0, 0))
    assert cache.content_key([tmp_path / "a"]) == first
    (tmp_path / "a").write_text("two")
    assert cache.content_key([tmp_path / "a"]) != first
    assert json.dumps(first)


def test_the_code_that_makes_data_is_known_by_content(tmp_path: Path) -> None:
    """Other code with the same settings once left its data in the cache, and tables were measured on them."""

    def key(name: str, text: str) -> str:
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        return cache.code_key(folder)

    keys = [key("a", "1"), key("a", "2"), key("b", "1")]
    assert len(set(keys)) == 3
    assert cache.code_key() == cache.content_key(sorted(Path(cache.__file__).parent.rglob("*.py")))["sha256"]


def test_without_the_variable_the_system_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSDISTILL_CACHE")
    assert cache.cache_folder().name == "crossdistill"
