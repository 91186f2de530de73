import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from facts import raises

from crossdistill.data.audio.sound_file import read_sound, resample
from crossdistill.errors import DataError, MissingExtraError

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def write(path: Path, rate: int = 8000, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=FORMATS[path.suffix[1:]])
    return wave


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(suffix: str, tmp_path: Path) -> None:
    wave = write(tmp_path / f"a.{suffix}", rate=16000, channels=2)
    found, rate = read_sound(tmp_path / f"a.{suffix}")
    assert (found.dtype, found.ndim, rate) == (np.float32, 1, 16000)
    lossless = suffix in ("wav", "flac")
    if lossless:
        assert found == pytest.approx(wave, abs=1e-4)
    else:
        assert abs(np.sqrt(np.mean(found[2000:12000] ** 2)) - 0.5 / np.sqrt(2)) < 0.02


def test_resampling_keeps_the_tone(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", rate=44100)
    found, rate = read_sound(tmp_path / "a.wav", 8000)
    assert (len(found), rate) == (8000, 8000)
    assert np.argmax(np.abs(np.fft.rfft(found))) == 440
    assert resample(found, 8000, 8000) is found


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_truncated_files_are_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with raises(DataError, f"cut.{suffix}"):
        read_sound(path)


@pytest.mark.parametrize("missing", [1, 2, 30])
def test_a_wav_that_lacks_a_few_bytes(missing: int, tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-missing])
    with raises(DataError, "a.wav", 16_000):
        read_sound(tmp_path / "a.wav")


def test_a_wav_from_a_stream_does_not_know_its_length(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_sound(tmp_path / "a.wav")[0]) == 8000


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVE", b"OggS", b"not a sound at all" * 100])
def test_unreadable_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with raises(DataError, "bad.wav"):
        read_sound(tmp_path / "bad.wav")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with raises(DataError, "none.wav"):
        read_sound(tmp_path / "none.wav")
    write(tmp_path / "empty.wav", seconds=0)
    with raises(DataError, "empty.wav"):
        read_sound(tmp_path / "empty.wav")


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with raises(MissingExtraError, 'pip install "crossdistill[audio]"'):
        read_sound(tmp_path / "a.wav")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "soxr", None)
    with raises(MissingExtraError, "'soxr'"):
        read_sound(tmp_path / "a.wav", 4000)
