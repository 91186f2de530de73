"""Renderings: pictures as Pillow resizes them, recordings of a fixed or a varying length, texts as ids."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises
from pydantic import ValidationError

from crossdistill.batch import InputSpec
from crossdistill.data.rendering import (
    ArrayRendering,
    PictureRendering,
    Sound,
    SoundRendering,
    TextRendering,
    rendering_of,
)
from crossdistill.errors import DataError


def picture(height: int = 30, width: int = 41, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(1, channels, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).to(torch.uint8)


@pytest.mark.parametrize(("name", "filter_name"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
@pytest.mark.parametrize("size", [(12, 17), (64, 50)])
def test_resizing_is_pillows(name: str, filter_name: str, size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install 'crossdistill[image]'")
    pixels = picture()
    filtered = getattr(image.Resampling, filter_name)
    wanted = np.asarray(image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size[::-1], filtered))
    rendering = PictureRendering.model_validate({"size": size, "interpolation": name, "rounded": True, "rescale": 1.0})
    found = rendering.apply(pixels).permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() <= 1


def test_the_middle_is_kept_and_values_are_normalised() -> None:
    rendering = PictureRendering(size=(20, 20), shortest=30, mean=(0.5, 0.4, 0.3), deviation=(0.5, 0.25, 0.2))
    pixels = picture(30, 50)
    wanted = (pixels[:, 5:25, 15:35] / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.5, 0.25, 0.2]
    )[:, None, None]
    assert torch.allclose(rendering.apply(pixels), wanted, atol=1e-6)
    assert rendering.apply(picture(90, 45)).shape == rendering.shape == (3, 20, 20)


def test_a_batch_of_unequal_pictures_equals_its_rows() -> None:
    rendering = PictureRendering(size=(16, 16), shortest=18, interpolation="bicubic")
    several = [picture(30, 41), picture(25, 25), picture(30, 41, 1), picture(30, 41)]
    batch = rendering.apply_all(several)
    for row, single in zip(batch, several, strict=True):
        assert torch.equal(row, rendering.apply(single))
    grey = PictureRendering(size=(16, 16), channels=1, rescale=1.0)
    assert torch.allclose(grey.apply(torch.full((3, 16, 16), 7, dtype=torch.uint8)), torch.tensor(7.0))


@pytest.mark.parametrize("align", ["middle", "start"])
def test_recordings_are_cut_and_padded(align: str) -> None:
    rendering = SoundRendering.model_validate({"rate": 1000, "kind": "wave", "seconds": 0.01, "align": align})
    long = torch.arange(14.0)
    start = 2 if align == "middle" else 0
    assert rendering.apply(Sound(long, 1000)).tolist() == list(range(start, start + 10))
    padded = rendering.apply(Sound(torch.ones(4), 1000))
    assert padded.tolist() == [0.0] * (3 if align == "middle" else 0) + [1.0] * 4 + [0.0] * (
        3 if align == "middle" else 6
    )


def test_recordings_of_any_length_come_with_their_lengths() -> None:
    sounds = [Sound(torch.randn(n), 8000) for n in (4000, 1000)]
    batch = SoundRendering(rate=8000, n_fft=256, hop=100, bands=16).apply_all(sounds)
    assert isinstance(batch, dict)
    assert batch["values"].shape == (2, 1, 16, 41)
    assert batch["lengths"].tolist() == [41, 11]
    fixed = SoundRendering(rate=8000, n_fft=256, hop=100, bands=16, seconds=0.25)
    rows = fixed.apply_all(sounds)
    assert rows.shape == (2, *fixed.shape)
    assert torch.allclose(rows[1], fixed.apply(sounds[1]), atol=1e-4)


def test_a_recording_changes_its_rate_and_is_standardised() -> None:
    pytest.importorskip("soxr", reason="pip install 'crossdistill[audio]'")
    rendering = SoundRendering(rate=16000, kind="wave", seconds=1.0, normalise="example")
    wave = rendering.apply(Sound(torch.randn(8000) * 3 + 1, 8000))
    assert wave.shape == (16000,)
    assert abs(float(wave.mean())) < 1e-4
    assert float(wave.std()) == pytest.approx(1, abs=1e-3)


def test_texts_without_a_tokenizer_are_bytes() -> None:
    ids = TextRendering(length=5).apply_all(["aé", "", "longer text"])
    assert ids["input_ids"].tolist() == [[98, 196, 170, 0, 0], [0] * 5, [byte + 1 for byte in b"longe"]]
    assert ids["attention_mask"].sum(1).tolist() == [3, 0, 5]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'crossdistill[text]'")
    vocabulary = {"[PAD]": 3, "[UNK]": 0, "seven": 1, "eight": 2}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return tmp_path


def test_texts_by_a_tokenizer_that_the_student_keeps(tokenizer: Path) -> None:
    rendering = TextRendering(tokenizer=tokenizer, length=3)
    ids = rendering.apply_all(["seven", "eight one seven eight"])
    assert ids["input_ids"].tolist() == [[1, 3, 3], [2, 0, 1]]
    key, spec = rendering.key, rendering.spec((3,))
    (tokenizer / "tokenizer.json").unlink()
    kept = rendering_of(spec, "student")
    assert isinstance(kept, TextRendering)
    assert torch.equal(kept.apply("seven")["input_ids"], ids["input_ids"][0])
    assert pickle.loads(pickle.dumps(rendering)).key == key
    with raises(DataError, "tokenizer.json"):
        TextRendering(tokenizer=tokenizer).apply("seven")


def test_a_specification_holds_its_rendering() -> None:
    for rendering in (
        PictureRendering(size=(8, 9), mean=(0.5,)),
        SoundRendering(rate=8000, seconds=1.0),
        SoundRendering(rate=8000, seconds=1.0, kind="wave"),
    ):
        spec = rendering.spec(rendering.shape)
        spec = InputSpec(spec.kind, spec.shape, json.loads(json.dumps(dict(spec.options))))
        assert rendering_of(spec, "student") == rendering
    numbers = ArrayRendering(mean=(1.0, 2.0), deviation=(2.0, 4.0))
    assert numbers.apply(torch.tensor([3, 10])).tolist() == [1.0, 2.0]
    assert rendering_of(InputSpec("array", (2,)), "student") is None
    with raises(DataError, "student", "(3, 9, 9)", "(3, 8, 9)"):
        rendering_of(InputSpec("image", (3, 9, 9), PictureRendering(size=(8, 9)).spec((3, 8, 9)).options), "student")
    with raises(DataError, "size"):
        rendering_of(InputSpec("image", (3, 9, 9), {"rendering": {"type": "picture", "size": [0, 9]}}), "student")


def test_equal_settings_have_equal_keys() -> None:
    assert PictureRendering(size=(8, 9)).key == PictureRendering(size=(8, 9)).key != PictureRendering(size=(9, 8)).key
    for wrong in ({"size": (8, 9), "shortest": 8}, {"size": (8, 8), "mean": (0.1, 0.2)}):
        with pytest.raises(ValidationError):
            PictureRendering.model_validate(wrong)
