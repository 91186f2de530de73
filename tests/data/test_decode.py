import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from builders import PICTURE, SOUND
from facts import raises
from PIL import Image

from crossdistill.batch import InputSpec
from crossdistill.data.decode import decode
from crossdistill.data.prepare import MIN_MAX, fit_length, normalise, prepare_sound
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.errors import DataError, MissingExtraError, ShapeError


def wave(samples: int = 6200, rate: int = 8000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 500 * np.arange(samples) / rate)).astype(np.float32)


def test_a_training_picture_comes_out_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "kept"))
    dataset = AvDigitsConfig(train_clips=40, validation_clips=20, test_clips=20).load()
    raw = load_digits().images[dataset.groups["handwriting"][7]] / 16
    spec = dataset.input_specs["image"]
    np.save(tmp_path / "a.npy", raw)
    assert decode(spec, tmp_path / "a.npy").allclose(dataset.inputs["image"][7], atol=1e-5)
    Image.fromarray(np.round(raw * 255).astype(np.uint8)).save(tmp_path / "a.png")
    assert decode(spec, tmp_path / "a.png").allclose(dataset.inputs["image"][7], atol=0.02)


def test_a_picture_of_another_size_colour_and_format(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "a.png")
    wanted = decode(PICTURE, tmp_path / "a.png")
    assert wanted.shape == (1, 8, 8)
    large = np.kron(small, np.ones((5, 5), np.uint8))
    Image.fromarray(large).save(tmp_path / "b.png")
    Image.fromarray(np.stack([large] * 3, axis=-1)).save(tmp_path / "c.png")
    Image.fromarray(large.astype(np.uint16) * 257).save(tmp_path / "d.png")
    for name in "bcd":
        assert decode(PICTURE, tmp_path / f"{name}.png").allclose(wanted, atol=1e-4), name
    Image.fromarray(large).save(tmp_path / "e.jpg", quality=100)
    assert (decode(PICTURE, tmp_path / "e.jpg") - wanted).abs().mean() < 0.1


def test_transparent_means_dark(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, 4:, 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    plain = InputSpec(kind="image", shape=(1, 8, 8), options={"normalisation": MIN_MAX})
    assert decode(plain, tmp_path / "a.png")[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_sound_comes_out_as_in_training(suffix: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a{suffix}", wave(), 8000, subtype="PCM_24")
    wanted = prepare_sound(torch.from_numpy(wave())[None], SOUND)[0]
    assert decode(SOUND, tmp_path / f"a{suffix}").allclose(wanted, atol=1e-3)
    np.save(tmp_path / "a.npy", wave())
    assert decode(SOUND, tmp_path / "a.npy").allclose(wanted, atol=1e-5)


def test_sounds_of_other_rates_lengths_and_formats(tmp_path: Path) -> None:
    wanted = prepare_sound(torch.from_numpy(wave())[None], SOUND)[0]
    for name, samples, rate in (("a.wav", 44100, 44100), ("b.ogg", 8000, 8000), ("c.mp3", 16000, 16000)):
        soundfile.write(tmp_path / name, wave(samples, rate), rate)
        found = decode(SOUND, tmp_path / name)
        loudest = wanted[0, :, 10].argmax()
        assert found[0, :, 10].argmax() == loudest, name
    soundfile.write(tmp_path / "short.wav", wave(1000), 8000)
    assert decode(SOUND, tmp_path / "short.wav").shape == (1, 32, 32)


def test_the_middle_is_kept() -> None:
    assert fit_length(torch.arange(5.0), 3).tolist() == [1, 2, 3]
    assert fit_length(torch.arange(1.0, 3.0), 5).tolist() == [0, 1, 2, 0, 0]
    assert fit_length(torch.arange(3.0), 3).tolist() == [0, 1, 2]


def test_arrays_and_ready_inputs(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    assert decode(InputSpec("array", (3, 4)), tmp_path / "a.npy").equal(torch.from_numpy(values))
    scaled = decode(InputSpec("array", (1, 3, 4), {"normalisation": MIN_MAX}), tmp_path / "a.npy")
    assert (scaled.shape, float(scaled.min()), float(scaled.max())) == ((1, 3, 4), 0, 1)
    for spec in (SOUND, PICTURE):
        ready = torch.randn(spec.shape)
        np.save(tmp_path / "ready.npy", ready.numpy())
        assert decode(spec, tmp_path / "ready.npy").equal(ready)


@pytest.mark.parametrize(
    ("spec", "name", "facts"),
    [
        (PICTURE, "a.wav", ("a.wav", "image", ".png, .jpg, .jpeg, .npy", "'.wav'")),
        (SOUND, "a.png", ("log-mel", ".wav, .flac, .ogg, .mp3, .npy")),
        (InputSpec("array", (3,)), "a.png", ("array", ".npy")),
        (InputSpec("tokens", (3,)), "a.txt", ("'tokens'",)),
        (PICTURE, "none.png", ("none.png",)),
    ],
)
def test_files_of_the_wrong_kind(spec: InputSpec, name: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    if name != "none.png":
        (tmp_path / name).write_bytes(b"x")
    with raises(DataError, *facts):
        decode(spec, tmp_path / name)


@pytest.mark.parametrize(
    ("spec", "array", "facts"),
    [
        (PICTURE, np.zeros((9, 9)), ("(9, 9)", "(1, 8, 8) or (8, 8)")),
        (SOUND, np.zeros((5, 5)), ("(5, 5)", "(1, 32, 32) or (samples,)")),
        (InputSpec("array", (3,)), np.zeros(4), ("(4,)", "(3,)")),
        (PICTURE, np.full((8, 8), 7.0), ("[0, 1]", "7 to 7")),
        (SOUND, np.full(6200, np.nan), ("NaN or Inf",)),
    ],
)
def test_arrays_that_do_not_fit(spec: InputSpec, array: np.ndarray, facts: tuple[str, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with raises(DataError, *facts):
        decode(spec, tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["png", "jpg", "wav", "flac", "npy"])
@pytest.mark.parametrize("share", [0.6, 0.2])
def test_truncated_files_are_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix in ("png", "jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(path)
    elif suffix == "npy":
        np.save(path, np.zeros((8, 8)))
    else:
        soundfile.write(path, wave(), 8000)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with raises(DataError, f"cut.{suffix}"):
        decode(SOUND if suffix in ("wav", "flac") else PICTURE, path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with raises(MissingExtraError, 'pip install "crossdistill[image]"'):
        decode(PICTURE, tmp_path / "a.png")


def test_a_constant_example_is_zero_and_another_size_is_refused() -> None:
    assert normalise(torch.full((2, 1, 3, 3), 5.0), MIN_MAX).eq(0).all()
    with raises(ShapeError, 100, 6200):
        prepare_sound(torch.zeros(1, 100), SOUND)
