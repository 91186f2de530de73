"""The data set of clips named in a manifest: crops, renderings, bad files, splits, quotas."""

import csv
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import called
from facts import raises, states

from crossdistill.batch import Input
from crossdistill.data.audio.any_sound import decode_part, decode_sound
from crossdistill.data.audio.manifest import make_manifest
from crossdistill.data.rendering import SoundRendering
from crossdistill.data.sets.speech_music import SpeechMusicConfig
from crossdistill.data.workers import Request, end_workers
from crossdistill.errors import DataError, MissingExtraError, ShapeError
from crossdistill.run_folder.merge import clips_of

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(seconds: float, rate: int = 16_000, pitch: float = 220.0, offset: float = 0.1) -> np.ndarray:
    """A sine with an offset, which the data set subtracts."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch * time) + offset).astype(np.float32)


def folder_of(root: Path, clips: int = 12, seconds: float = 0.2) -> Path:
    """Speech at 16 kHz and music at 44.1 kHz, as many clips of each."""
    for domain, rate in (("speech", 16_000), ("music", 44_100)):
        (root / domain).mkdir(parents=True)
        for number in range(clips):
            wave = tone(seconds + 0.01 * number, rate, 200 + 20 * number)
            soundfile.write(root / domain / f"{number:02d}.wav", wave, rate)
    return root


def manifest_of(root: Path, rows: Sequence[dict[str, Any]] | None = None, name: str = "m.csv") -> Path:
    """A manifest of these rows, by default of all clips of the folder, without durations."""
    rows = rows or [{"path": f"{p.parent.name}/{p.name}", "domain": p.parent.name} for p in sorted(root.rglob("*.wav"))]
    path = root / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def waves(value: Input) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and lengths of a batch."""
    assert not isinstance(value, torch.Tensor)
    return value["values"], value["lengths"]


def test_batches_are_padded_mono_resampled_and_without_their_mean(tmp_path: Path) -> None:
    data = SpeechMusicConfig(manifest=manifest_of(folder_of(tmp_path)), workers=0).load()
    rows = torch.arange(len(data))
    batch = data.batch(rows)
    values, lengths = waves(batch.inputs["audio"])
    assert data.task == "none"
    assert batch.domain == ["music"] * 12 + ["speech"] * 12
    assert lengths.tolist() == [round((0.2 + 0.01 * number) * 16_000) for number in range(12)] * 2
    assert values.shape == (24, int(lengths.max()))
    for value, length in zip(values, lengths.tolist(), strict=True):
        assert abs(float(value[:length].mean())) < 1e-6
        assert not value[length:].any()
    # The same tone, at both rates.
    torch.testing.assert_close(values[0, 200:3000], values[12, 200:3000], atol=2e-3, rtol=0)


def test_crops_are_drawn_by_row_and_by_view_and_shared_by_renderings(tmp_path: Path) -> None:
    manifest = manifest_of(folder_of(tmp_path, clips=10, seconds=0.5), name="m.jsonl")
    fixed = SpeechMusicConfig(manifest=manifest, workers=0, crop_seconds=0.1).load()
    rows = torch.arange(len(fixed))
    whole, lengths = waves(fixed.read("audio", rows))
    assert set(lengths.tolist()) == {1600}
    assert fixed.views(rows, seed=0, epoch=1) is None
    alone, _ = waves(fixed.read("audio", rows[3:4]))
    torch.testing.assert_close(alone[0], whole[3], atol=0, rtol=0)
    varied = SpeechMusicConfig(manifest=manifest, workers=0, crop_seconds=0.1, crops=None).load()
    first, second = (varied.batch(rows, view=varied.views(rows, 0, epoch)).inputs["audio"] for epoch in (1, 2))
    assert not torch.equal(waves(first)[0], waves(second)[0])
    torch.testing.assert_close(waves(varied.batch(rows).inputs["audio"])[0], whole, atol=0, rtol=0)
    # Rows of a validation beside training rows in a batch: each has the crop that it has among its own.
    views = torch.where(rows % 2 == 0, 0, varied.views(rows, 0, 1))
    beside, _ = waves(varied.batch(rows, view=views).inputs["audio"])
    torch.testing.assert_close(beside[::2], whole[::2], atol=0, rtol=0)
    torch.testing.assert_close(beside[1::2], waves(first)[0][1::2], atol=0, rtol=0)
    source: Any = varied.inputs["audio"]
    with raises(ShapeError, 3, len(rows)):
        source.in_view(torch.ones(3, dtype=torch.int64)).fetch(rows)
    other = source.rendered(SoundRendering(rate=8000, kind="wave", normalise="mean"))
    halved, halves = waves(other.in_view(varied.views(rows, 0, 1)).fetch(rows))
    assert set(halves.tolist()) == {800}
    torch.testing.assert_close(halved[:, 50:750], waves(first)[0][:, ::2][:, 50:750], atol=2e-2, rtol=0)


def test_bad_files_are_counted_at_the_start_and_replaced_when_they_break_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path)
    (root / "speech" / "00.wav").write_bytes(b"no sound at all")
    (root / "speech" / "01.wav").write_bytes(b"")
    soundfile.write(root / "music" / "00.wav", tone(0.02, 16_000), 16_000)
    manifest = manifest_of(root)
    (root / "music" / "01.wav").unlink()
    with caplog.at_level(logging.WARNING):
        data = SpeechMusicConfig(manifest=manifest, workers=2).load()
    assert len(data) == 20
    states(data.how_split, 4, 24, "00.wav", "320 samples", "does not exist")
    broken = Path(data.inputs["audio"].name_of(3))  # type: ignore[union-attr]
    soundfile.write(broken, np.full(len(soundfile.read(broken)[0]), np.nan, np.float32), 44_100, subtype="FLOAT")
    caplog.clear()
    requests = (Request(part) for part in torch.arange(20).split(4))
    read = list(data.batches(requests, torch.device("cpu")))
    end_workers()
    assert sum(len(batch) for batch in read) == 20
    assert all(bool((waves(batch.inputs["audio"])[1] > 400).all()) for batch in read)
    assert data.inputs["audio"].clips.skipped == 1  # type: ignore[union-attr]


def test_a_domain_of_bad_files_alone_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path, clips=3)
    for path in (root / "speech").iterdir():
        path.write_bytes(b"")
    with raises(DataError, "'speech'", 3):
        SpeechMusicConfig(manifest=manifest_of(root)).load()


def test_antiphase_and_another_rate_than_stated_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_of(tmp_path, clips=10)
    wave = tone(0.3, offset=0)
    soundfile.write(root / "speech" / "00.wav", np.stack([wave, -wave], 1), 16_000)
    rows = [{"path": f"{p.parent.name}/{p.name}", "domain": p.parent.name, "rate": 16_000}
            for p in sorted(root.rglob("*.wav"))]  # fmt: skip
    data = SpeechMusicConfig(manifest=manifest_of(root, rows), workers=0).load()
    with caplog.at_level(logging.WARNING):
        data.batch(torch.arange(len(data)))
    states(caplog.text, "2 channels", "inverted", "16000 Hz", "44100 Hz")


def test_splits_follow_a_column_else_groups_else_domains(tmp_path: Path) -> None:
    root = folder_of(tmp_path)
    paths = sorted(root.rglob("*.wav"))
    names = ["train", "dev", "test"]
    rows = [{"path": str(p), "domain": p.parent.name, "split": names[i % 3], "target": str(i % 2)}
            for i, p in enumerate(paths)]  # fmt: skip
    data = SpeechMusicConfig(manifest=manifest_of(root, rows)).load()
    assert {name: len(index) for name, index in data.splits.items()} == {"train": 8, "validation": 8, "test": 8}
    assert data.task == "classes"
    grouped = [{"path": str(p), "domain": p.parent.name, "group": p.stem[0:2]} for p in paths]
    data = SpeechMusicConfig(manifest=manifest_of(root, grouped)).load()
    groups = [set(data.groups["group"][index].tolist()) for index in data.splits.values()]
    assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
    plain = SpeechMusicConfig(manifest=manifest_of(root)).load()
    assert plain.domain is not None
    assert Counter(plain.domain[row] for row in plain.splits["test"].tolist()) == {"speech": 1, "music": 1}


@pytest.mark.parametrize("grouped", [False, True])
def test_parts_of_one_recording_are_in_one_split(grouped: bool, tmp_path: Path) -> None:
    paths = sorted(folder_of(tmp_path, clips=8).rglob("*.wav"))
    # Two parts of each file, one of them by another name of it.
    rows = [
        {"path": name, "domain": path.parent.name, "start": start, "duration": 0.1}
        | ({"group": path.stem[1] if number % 2 else ""} if grouped else {})
        for number, path in enumerate(paths)
        for name, start in ((f"{path.parent.name}/{path.name}", 0.0), (str(path), 0.1))
    ]
    data = SpeechMusicConfig(manifest=manifest_of(tmp_path, rows)).load()
    assert data.domain is not None
    files = [{Path(rows[row]["path"]).name + data.domain[row] for row in index} for index in data.splits.values()]
    assert sum(map(len, files)) == len(set.union(*files)) == 16
    states(data.how_split, "'path'", *(["'group'"] if grouped else []))
    # A recording of its own for each row is no group.
    assert "path" not in SpeechMusicConfig(manifest=manifest_of(tmp_path, rows[::2])).load().groups


def m4a(path: Path, seconds: float = 1.0, rate: int = 16_000) -> None:
    """A recording of noise whose loudness grows, of which libsndfile reads nothing."""
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    count = round(seconds * rate)
    wave = np.random.default_rng(0).standard_normal(count) * np.linspace(0.01, 0.3, count)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_clips_of_files_that_libsndfile_does_not_read_are_decoded(tmp_path: Path) -> None:
    root = folder_of(tmp_path, clips=3)
    for number in range(3):
        m4a(root / "speech" / f"{number}.m4a")
    make_manifest([root / "speech"], "speech", root / "m.csv")
    make_manifest([root / "music"], "music", root / "m.csv")
    data = SpeechMusicConfig(manifest=root / "m.csv", workers=0, crop_seconds=0.1).load()
    batch = data.batch(torch.arange(len(data)))
    assert data.inputs["audio"].clips.skipped == 0  # type: ignore[union-attr]
    assert waves(batch.inputs["audio"])[1].tolist() == [1600] * 9
    path = root / "speech" / "0.m4a"
    whole, rate = decode_sound(path)
    for start, seconds in ((0.0, 0.25), (0.3333, 0.2), (0.9, 5.0)):
        part, own = decode_part(path, start, seconds)
        first = int(start * rate)
        assert own == rate
        np.testing.assert_array_equal(part, whole[first : first + int(seconds * rate)])
    with raises(DataError, "0.m4a", "5"):
        decode_part(path, 5.0, 1.0)
    assert len(clips_of(root / "m.csv")) == 9


def test_without_the_package_that_reads_a_file_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path, clips=3)
    (root / "speech" / "song.m4a").write_bytes(b"some bytes")
    rows = [{"path": f"speech/{name}", "domain": "speech", "duration": 0.2}
            for name in ("00.wav", "01.wav", "02.wav", "song.m4a")]  # fmt: skip
    monkeypatch.setitem(sys.modules, "av", None)
    with raises(MissingExtraError, "av", ".m4a"):
        SpeechMusicConfig(manifest=manifest_of(root, rows)).load()


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        ([{"file": "a.wav", "domain": "speech"}], ["'path'"]),
        ([{"path": "a.wav", "domain": ""}], ["'domain'", "line 2"]),
        ([{"path": "a.wav", "domain": "speech", "duration": "long"}], ["'duration'", "'long'"]),
    ],
)
def test_faulty_manifests_are_refused(tmp_path: Path, rows: list[dict[str, Any]], facts: list[str]) -> None:
    with raises(DataError, *facts):
        SpeechMusicConfig(manifest=manifest_of(tmp_path, rows)).load()


def test_a_manifest_is_made_of_folders_and_appended_to(tmp_path: Path) -> None:
    root = folder_of(tmp_path, clips=4)
    (root / "music" / "bad.mp3").write_bytes(b"nothing")
    for to in (root / "made.csv", root / "made.jsonl"):
        first = make_manifest([root / "speech"], "speech", to, group=True)
        second = make_manifest([root / "speech", root / "music"], "music", to)
        assert (first.added, second.added, second.already) == (4, 4, 4)
        assert second.clips == {"speech": 4, "music": 4}
        states(second.skipped, 1, "bad.mp3")
        data = SpeechMusicConfig(manifest=to, workers=0).load()
        assert len(data) == 8
    with raises(DataError, "holds no recording"):
        (tmp_path / "empty").mkdir()
        make_manifest([tmp_path / "empty"], "speech", root / "made.csv")


@pytest.mark.parametrize(("name", "seconds"), [("philharmonia", 1075), ("esc10", 120)])
def test_real_folders_are_scanned(tmp_path: Path, shared_data: Path, name: str, seconds: int) -> None:
    if not (shared_data / name).is_dir():
        pytest.skip(f"the shared data {name} are absent")
    made = make_manifest([shared_data / name], "music", tmp_path / "m.csv")
    assert made.added == seconds
    data = SpeechMusicConfig(manifest=tmp_path / "m.csv", workers=0, rows=8).load()
    assert bool((waves(data.batch(torch.arange(8)).inputs["audio"])[1] > 0).all())


def test_the_command_writes_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path, clips=3)
    words = ("audio", "manifest", root / "speech", "--domain", "speech", "--to", root / "c.csv")
    said = called(*words, "--json", capsys=capsys, monkeypatch=monkeypatch)
    assert json.loads(said.out)["clips"] == {"speech": 3}
    assert called(*words, capsys=capsys, monkeypatch=monkeypatch).status == 0
    assert called(*words[:-1], root / "c.txt", capsys=capsys, monkeypatch=monkeypatch).status == 1


def test_a_file_written_anew_with_as_many_bytes_is_other_data(tmp_path: Path) -> None:
    root = folder_of(tmp_path)
    config = SpeechMusicConfig(manifest=manifest_of(root))
    before, again = config.load(), config.load()
    path = root / "speech" / "00.wav"
    size = path.stat().st_size
    soundfile.write(path, -tone(0.2, pitch=200), 16_000)
    assert path.stat().st_size == size
    assert again.fingerprint == before.fingerprint != config.load().fingerprint
    source: Any = before.inputs["audio"]
    with raises(DataError, "00.wav"):
        source.check_unchanged()
    path.unlink()
    source.check_unchanged()
