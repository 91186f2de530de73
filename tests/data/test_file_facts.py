"""Facts of files are read once, by workers where there are many, and a decoder that crashes costs one file."""

import os
from pathlib import Path

import numpy as np
import pytest
from own_files import write_picture, write_sound

from crossdistill.data import file_facts
from crossdistill.data.file_facts import examine, facts_of
from crossdistill.data.picture_file import decode_picture
from crossdistill.errors import DataError

image = pytest.importorskip("PIL.Image", reason="pip install 'crossdistill[image]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


class Said:
    """The numbers of files that had to be read."""

    def __init__(self) -> None:
        self.due: list[int] = []

    def __call__(self, done: int, due: int) -> None:
        self.due.append(due)


def test_a_second_start_reads_no_file_that_is_as_it_was(tmp_path: Path) -> None:
    paths = [str(write_picture(tmp_path / f"{n}.png", n)) for n in range(5)]
    first, second, third = Said(), Said(), Said()
    facts = facts_of("image", paths, first)
    assert first.due == [5]
    assert {one.shape for one in facts} == {(3, 12, 12)}
    assert len({one.sha256 for one in facts}) == 5
    assert facts_of("image", paths, second) == facts
    assert second.due == []
    write_picture(Path(paths[2]), 9, size=(4, 5))
    again = facts_of("image", paths, third)
    assert third.due == [1]
    assert again[2].shape == (3, 4, 5)
    (tmp_path / "cache" / file_facts.KEPT).write_bytes(b"no database")
    assert facts_of("image", paths, Said()) == again


def test_a_fault_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "none.png"), str(tmp_path)]
    faults = [one.fault for one in facts_of("image", paths, Said())]
    assert "truncated" in faults[0]
    assert "no such file" in faults[1]
    assert "folder" in faults[2]
    said = Said()
    facts_of("image", paths, said)
    assert said.due == [3]


CRASHING = """
import os, sys
from crossdistill.data import facts_worker
examine = facts_worker.examine
facts_worker.examine = lambda kind, path: os._exit(11) if path.name == "005.png" else examine(kind, path)
facts_worker.main()
"""


def test_workers_read_many_files_and_a_crash_costs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(write_picture(tmp_path / f"{n:03}.png", n)) for n in range(9)]
    (tmp_path / "007.png").write_bytes(b"x")
    wanted = [examine("image", Path(path)) for path in paths]
    (tmp_path / "crashing_worker.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(file_facts, "WORKER", "crashing_worker")
    monkeypatch.setattr(file_facts, "INLINE_S", 0.0)
    facts = facts_of("image", paths, Said())
    assert [one for n, one in enumerate(facts) if n != 5] == [one for n, one in enumerate(wanted) if n != 5]
    assert "11" in facts[5].fault
    # This process would end at that file: it is not tried again.
    monkeypatch.setattr(file_facts, "INLINE_S", 60.0)
    assert facts_of("image", paths, Said()) == facts


def test_recordings_and_arrays(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="pip install 'crossdistill[audio]'")
    assert examine("sound", write_sound(tmp_path / "a.wav", 1, seconds=0.5, channels=2)).shape == (4000, 8000)
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.int16))
    facts = examine("array", tmp_path / "a.npy")
    assert (facts.shape, facts.dtype) == ((2, 3), "int16")
    np.save(tmp_path / "a.npy", np.full((2, 3), np.nan))
    assert "NaN" in examine("array", tmp_path / "a.npy").fault
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    assert examine("array", tmp_path / "b.npy").fault


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_kind(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    if mode == "I;16":
        image.fromarray(np.full((3, 4), 257 * 102, np.uint16)).save(path)
    else:
        image.new("RGB", (4, 3), (102, 102, 102)).convert(mode).save(path)
    pixels = decode_picture(path)
    assert pixels.shape == ((1 if mode in ("1", "L", "I;16") else 3), 3, 4)
    if mode != "1":
        assert np.abs(pixels.astype(float) - 102).max() <= 1


def test_a_picture_is_turned_as_its_camera_noted(tmp_path: Path) -> None:
    exif = image.Exif()
    exif[0x0112] = 6
    image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_picture(tmp_path / "a.jpg").shape == (3, 4, 3)
    clear = image.new("RGBA", (2, 2), (200, 200, 200, 0))
    clear.save(tmp_path / "clear.png")
    assert not decode_picture(tmp_path / "clear.png").any()
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n", b""):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png"):
            decode_picture(tmp_path / "a.png")
