"""Manifests that say something else than the files, or than the data set reads: splits, durations, copies, columns."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import called
from facts import raises, states

from crossdistill.data.audio.manifest import make_manifest
from crossdistill.data.sets import speech_music
from crossdistill.data.sets.speech_music import SpeechMusicConfig
from crossdistill.errors import DataError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
CLIPS = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve recordings of 0.5 s, even ones of speech."""
    for number in range(CLIPS):
        wave = np.random.default_rng(number).normal(0, 0.1, 8000).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
    return tmp_path


def config(root: Path, columns: str = "", cells: list[str] | None = None, **settings: object) -> SpeechMusicConfig:
    """A manifest of path, domain and further columns, whose cells are texts as "a,b"."""
    lines = [f"path,domain{',' * bool(columns)}{columns}"]
    for number, cell in enumerate(cells or [""] * CLIPS):
        own = f",{cell}" if columns else ""
        lines.append(f"{number % CLIPS}.wav,{'music' if number % 2 else 'speech'}{own}")
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    return SpeechMusicConfig.model_validate({"manifest": root / "m.csv", "workers": 0, **settings})


def test_a_column_of_splits_needs_no_test_without_targets(root: Path) -> None:
    data = config(root, "split", ["Train", "train ", "Valid"] * 4).load()
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 8, "validation": 4, "test": 0}
    data = config(root, "split", ["TRAIN"] * CLIPS).load()
    assert len(data.splits["validation"]) > 0
    assert not len(data.splits["test"])
    with raises(DataError, root / "m.csv", "'split'", "test", "holdout", "domain"):
        config(root, "split,target", ["Train,a", "Valid,b"] * 6).load()
    with raises(DataError, root / "m.csv", "'split'", "train", "training"):
        config(root, "split", ["Valid"] * CLIPS).load()
    with raises(DataError, root / "m.csv", "'split'", "'trian'", "line 2", "'train'"):
        config(root, "split", ["trian"] * CLIPS).load()


def test_a_part_that_ends_after_its_file_is_left_out_at_the_start(root: Path) -> None:
    cells = ["0,0.5"] * CLIPS
    cells[2], cells[5], cells[6] = "0,60", "100,0.5", "0.1,0.6"
    data = config(root, "start,duration", cells).load()
    assert len(data) == CLIPS - 2
    states(data.how_split, "2.wav", "60 s", "0.5 s", "5.wav", "second 100", f"2 of {CLIPS}")
    # A duration that is rounded up is that of the file.
    assert data.inputs["audio"].clips.seconds.tolist() == pytest.approx([0.5] * 4 + [0.4] + [0.5] * 5)  # type: ignore[union-attr]


def test_a_large_manifest_is_compared_with_its_files_when_they_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speech_music, "CHECKED", 3)
    cells = ["0,0.5"] * CLIPS
    cells[2], cells[5] = "0,60", "100,0.5"
    data = config(root, "start,duration", cells, crop_seconds=5.0).load()
    assert len(data) == CLIPS
    with caplog.at_level(logging.WARNING):
        for row in range(CLIPS):
            data.batch(torch.tensor([row]))
    assert data.inputs["audio"].clips.skipped == 2  # type: ignore[union-attr]
    states(caplog.text, "2.wav", "60 s", "0.5 s", "manifest")


def test_copies_of_a_row_are_warned_of_and_stay_in_one_split(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config(root).load()
    assert "copies" not in caplog.text
    cells = [""] * (3 * CLIPS)
    with caplog.at_level(logging.WARNING):
        data = config(root, cells=cells).load()
    states(caplog.text, 2 * CLIPS, "copies")
    for rows in data.splits.values():
        assert len(rows) == 3 * len({int(row) % CLIPS for row in rows})


@pytest.mark.parametrize(("column", "meant"), [("durations", "duration"), ("groups", "group"), ("Split", "split")])
def test_a_misspelled_column_is_refused(root: Path, column: str, meant: str) -> None:
    with raises(DataError, root / "m.csv", repr(column), repr(meant)):
        config(root, column, ["1"] * CLIPS).load()


def test_other_columns_are_listed(root: Path) -> None:
    data = config(root, "speaker,state,idx", ["a,b,c"] * CLIPS).load()
    states(data.how_split, "speaker", "state", "idx")


def test_files_skipped_are_listed_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "4.wav").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        data = config(root).load()
    states(caplog.text, f"1 of {CLIPS}")
    assert (caplog.text + data.how_split).count("4.wav") == 1


def test_files_of_another_domain_keep_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_manifest([root], "speech", root / "made.csv")
    made = make_manifest([root], "music", root / "made.csv")
    assert (made.added, made.already, made.kept) == (0, CLIPS, {"speech": CLIPS})
    assert not make_manifest([root], "speech", root / "made.csv").kept
    words = ("audio", "manifest", root, "--domain", "music", "--to", root / "made.csv")
    said = called(*words, capsys=capsys, monkeypatch=monkeypatch)
    states(said.err, CLIPS, "speech")
