"""What a student is given to look at: files of any origin, arrays and tensors."""

import logging
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from builders import SOUND
from command_line import Command
from facts import raises
from PIL import Image
from torch import nn

from crossdistill import Dataset, InputSpec, Network
from crossdistill.data.array_file import read_array
from crossdistill.data.audio.sound_file import read_sound
from crossdistill.data.decode import decode
from crossdistill.data.prepare import MIN_MAX
from crossdistill.data.sets.av_mnist_arrays import SHAPES, _check
from crossdistill.errors import CrossdistillError, DataError, ShapeError
from crossdistill.student import Student, load_student, save_student

LONG = "a" * 300


class Pooled(nn.Module):
    """Takes pictures of every size, of one channel or three."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.conv(picture if picture.ndim == 4 else picture[:, None]).mean((2, 3))


def student(spec: InputSpec, module: nn.Module | None = None) -> Student:
    torch.manual_seed(0)
    size = torch.Size(spec.shape).numel()
    made = Network(module or nn.Sequential(nn.Flatten(), nn.Linear(size, 3)), "picture")
    return Student(made, ["a", "b", "c"], {"picture": spec})


def wave(samples: int = 6200) -> np.ndarray:
    return (0.3 * np.sin(np.arange(samples) / 3)).astype(np.float32)


@pytest.mark.parametrize("rate", [1, 7, 999, 1_000_000, 2**31 - 1])
def test_c_a_wav_of_an_absurd_rate_is_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, wave(), 8000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    with raises(DataError, "a.wav", rate, 1_000, 768_000):
        decode(SOUND, path)


@pytest.mark.parametrize(
    ("promised", "said"), [(2**36 - 1, "68,719,476,735"), (2**28 + 1, "268,435,457"), (0, "length")]
)
def test_c_a_flac_that_promises_what_it_has_not_takes_no_memory(tmp_path: Path, promised: int, said: str) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, wave(), 8000)
    content = bytearray(path.read_bytes())
    (told,) = struct.unpack(">Q", content[18:26])
    content[18:26] = struct.pack(">Q", told >> 36 << 36 | promised)
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raises(DataError, "a.flac", said):
        read_sound(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "KiB"


def npy(path: Path, shape: str, content: bytes = b"\0" * 64, kind: str = "<f4") -> Path:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content)
    return path


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shape", ["(1099511627776,)", "(4294967296, 4294967296)", "(-4,)", "(17,)", "(2,)*9", "[2]"])
def test_c_an_array_whose_header_promises_more_than_its_file_holds(tmp_path: Path, shape: str, mapped: bool) -> None:
    with raises(DataError, "a.npy"):
        read_array(npy(tmp_path / "a.npy", shape), mapped=mapped)


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i4", ">u2", "<f2", "<u2", "<i8", "|u1", "|b1"])
def test_c_arrays_of_every_byte_order_and_type(tmp_path: Path, kind: str) -> None:
    values = np.arange(6).reshape(2, 3) % 2
    np.save(tmp_path / "a.npy", values.astype(kind))
    assert decode(InputSpec("array", (2, 3)), tmp_path / "a.npy").tolist() == values.tolist()
    assert student(InputSpec("array", (2, 3))).predict(values.astype(kind).astype(np.float32))
    assert decode(InputSpec("image", (1, 2, 3)), tmp_path / "a.npy").shape == (1, 2, 3)


def test_c_an_array_that_is_not_read_whole(tmp_path: Path) -> None:
    """Of a long waveform the middle is read, of an array of another shape nothing."""
    with (tmp_path / "long.npy").open("wb") as file:
        npy(tmp_path / "long.npy", "(4294967296,)", b"")
        file.truncate(128 + 4 * 2**32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode(SOUND, tmp_path / "long.npy").shape == (1, 32, 32)
    with raises(DataError, "(4294967296,)"):
        decode(InputSpec("array", (5,)), tmp_path / "long.npy")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "KiB"


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "b/" * 3000 + "c.png", "nul\0.png"])
def test_c_names_that_no_file_can_have(tmp_path: Path, name: str, crossdistill: Command) -> None:
    with raises(DataError, "name"):
        student(InputSpec("image", (1, 8, 8))).predict(name)
    with pytest.raises(CrossdistillError):
        load_student(name)
    if len(name) < 500 and "\0" not in name:
        assert crossdistill("predict", name, "x.png").complaint()
        assert crossdistill("eval", name).complaint()


@pytest.mark.parametrize(
    "words",
    [
        *(["run", LONG], ["run", f"{LONG}.yaml"], ["run", f"{LONG}.py:f"], ["eval", LONG], ["predict", LONG, "x.png"]),
        *(["run", "av-digits/kd", "--tiny", "--out", LONG], ["eval", "x", "--recipe", f"{LONG}.py:f"]),
        *(["bank", "list", LONG], ["bank", "check", LONG], ["bank", "clear", LONG]),
        ["compare", "av-digits", "--methods", "kd", "--tiny", "--seeds", "1", "--out", LONG],
    ],
)
def test_c_names_over_255_bytes_are_a_sentence_wherever_they_are_given(words: list[str], crossdistill: Command) -> None:
    assert LONG[:50] in crossdistill(*words).complaint()


def test_c_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.png", "a.npy"):
        os.mkfifo(tmp_path / name)
        with raises(DataError, "pipe"):
            student(InputSpec("image", (1, 8, 8))).predict(tmp_path / name)
    os.mkfifo(tmp_path / "a.wav")
    with raises(DataError, "pipe"):
        decode(SOUND, tmp_path / "a.wav")


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8), (1, 4, 4), (3, 16, 8)])
def test_c_a_picture_into_a_specification_of_ones_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = InputSpec(kind="image", shape=shape)
    found = decode(spec, tmp_path / "a.png")
    assert found.shape == shape
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    wanted = torch.nn.functional.interpolate(rgb, shape[-2:], mode="area")[0]
    grey = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * wanted).sum(0)
    assert found.allclose(wanted if shape[0] == 3 else grey.reshape(shape), atol=1e-5)
    assert student(spec, Pooled(shape[0] if len(shape) == 3 else 1)).predict(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8), (8, 8, 4), (1, 1, 8, 8)])
def test_c_a_picture_into_what_is_no_picture(tmp_path: Path, shape: tuple[int, ...]) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with raises(DataError, "(H, W)", "(1, H, W)", "(3, H, W)"):
        decode(InputSpec(kind="image", shape=shape), tmp_path / "a.png")


@pytest.mark.parametrize(
    "options",
    [{"normalisation": "min-max"}, {"normalisation": {"kind": "z"}}, {"normalisation": {**MIN_MAX, "kind": 3}}],
)
def test_c_a_normalisation_that_is_none_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with raises(DataError, "normalisation"):
        decode(InputSpec("image", (1, 8, 8), options), tmp_path / "a.png")


def test_c_arrays_and_tensors_are_predicted_like_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    made = student(InputSpec("array", (1, 8, 8), {"normalisation": {"kind": "min-max", "low": -1.0, "high": 2.0}}))
    for number, row in enumerate(rows):
        np.save(tmp_path / f"{number}.npy", row)
    wanted = made.predict([tmp_path / f"{number}.npy" for number in range(5)])
    assert made.predict(rows) == wanted
    assert made.predict(torch.from_numpy(rows)) == wanted
    assert made.predict(list(rows)) == wanted
    assert made.predict([rows[0], torch.from_numpy(rows[1]), str(tmp_path / "2.npy")]) == wanted[:3]
    for form in (rows[1], rows[1, 0], rows[1].reshape(-1), torch.from_numpy(rows[1]), str(tmp_path / "1.npy")):
        (alone,) = made.predict(form)
        assert (alone.label, alone.probability) == (wanted[1].label, pytest.approx(wanted[1].probability))
    assert made.predict(rows[:0]) == []
    assert made.predict(rows[::-1].astype(">f8"))[::-1] == wanted


@pytest.mark.parametrize("array", [np.zeros((9, 9)), np.zeros((5, 8, 8)), np.array(["a"]), np.full((8, 8), np.nan)])
def test_c_arrays_that_are_no_example(array: np.ndarray) -> None:
    with raises(DataError, "array"):
        student(InputSpec("array", (1, 8, 8))).predict(array)


def test_c_bytes_of_the_networks_own_dimensions_are_no_input() -> None:
    """A picture that forgot its preparation would be read as it is, 255 times too bright."""
    with raises(DataError, "(1, 8, 8)"):
        student(InputSpec("image", (1, 8, 8))).predict(np.full((1, 8, 8), 200, np.uint8))


def test_c_inputs_of_another_size_than_in_training_are_refused() -> None:
    made = student(InputSpec("image", (1, 8, 8)), Pooled())
    assert made.logits({"picture": torch.zeros(2, 1, 8, 8)}).shape == (2, 3)
    for shape in ((2, 1, 16, 16), (1, 8, 8)):
        with raises(ShapeError, "(rows, 1, 8, 8)"):
            made.logits({"picture": torch.zeros(shape)})
    with raises(CrossdistillError, "picture"):
        made.logits({})


def test_c_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    spec = InputSpec("image", (1, 8, 8))
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", grey)
    for name in ("a.png", "b.npy"):
        assert decode(spec, tmp_path / name)[0].numpy() == pytest.approx(grey / 65535, abs=1e-6), name
    assert decode(InputSpec("image", (3, 8, 8)), tmp_path / "a.png")[2].numpy() == pytest.approx(grey / 65535, abs=1e-6)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_c_sixteen_bits_of_colour_are_not_cut_to_eight(tmp_path: Path, colour: int, channels: int) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0))
    rows = b"".join(b"\0" + bytes(range(8 * channels)) for _ in range(4))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with raises(DataError, "a.png", "16 bits"):
        decode(InputSpec("image", (1, 4, 4)), path)


def test_c_palettes_keep_their_depth(tmp_path: Path) -> None:
    """Colours that differ by less than a step of eight-bit grey stay different."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([100, 100, 100, 100, 100, 102])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png")
    first, second = decode(InputSpec("image", (1, 1, 2)), tmp_path / "a.png").flatten().tolist()
    assert first == pytest.approx(100 / 255, abs=1e-6)
    assert second == pytest.approx((100 + 2 * 0.114) / 255, abs=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_c_white_is_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    white = Image.fromarray(np.full((4, 4), 65535, np.uint16)) if mode == "I;16" else Image.new("L", (4, 4), 255)
    (white if mode == "I;16" else white.convert(mode)).save(tmp_path / "a.png")
    assert decode(InputSpec("image", (4, 4)), tmp_path / "a.png").numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("factor", "warned"), [(-1.0, True), (-0.99, True), (-0.5, False), (1.0, False), (0.0, False)])
def test_c_stereo_whose_mean_is_silence_is_said(
    tmp_path: Path, factor: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([wave(), factor * wave()], 1), 8000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING, "crossdistill"):
        decode(SOUND, tmp_path / "a.wav")
    assert bool(caplog.records) is warned
    assert not warned or "a.wav: its 2 channels" in caplog.text


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("form", [lambda shape: shape, lambda shape: shape[1:], lambda shape: (shape[1] * shape[2],)])
def test_c_the_references_arrays_are_predicted_in_every_form_that_its_reader_takes(
    tmp_path: Path, kind: str, form: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> None:
    shape = SHAPES[kind]
    rows = np.random.default_rng(0).random((3, *form(shape))).astype(np.float32)
    _check(kind, rows, np.zeros(3, np.int64), Path("data.npy"), Path("labels.npy"))
    data = Dataset.from_arrays(
        "arrays",
        {"picture": np.zeros((20, *shape), np.float32)},
        np.arange(20) % 3,
        input_specs={"picture": InputSpec("array", shape, {"normalisation": MIN_MAX})},
    )
    made = Network(nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3)), "picture")
    save_student(tmp_path / "student", made, made, data, "card")
    loaded = load_student(tmp_path / "student", made.module)
    np.save(tmp_path / "row.npy", rows[1])
    (found,) = loaded.predict(tmp_path / "row.npy")
    (ready,) = loaded.predict(rows[1].reshape(shape))
    assert found == ready
