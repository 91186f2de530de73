"""300 student folders that a person or a disk has spoiled: each is refused in words, or answers as it did."""

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from builders import PICTURE, SOUND
from facts import raises
from PIL import Image
from torch import Tensor, nn

from crossdistill import CrossdistillError, Dataset, InputSpec, Network, NetworkConfig
from crossdistill.run_folder.student_files import sealed
from crossdistill.runtime.hashing import file_hash
from crossdistill.student import load_student, save_student

FOLDERS, PARTS = 300, 10
MOST_SECONDS, MOST_GROWTH = 30, 400 * 2**20
VECTOR = InputSpec("array", (6,), {"normalisation": {"kind": "min-max", "low": -2.0, "high": 3.0}})

EVIL: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 10**6, 2**31, 2**40, 2**63, 2**70, -(2**63), 1e-300, 1e308, -0.5, 1.5, True, False, None),
    *(
        "",
        "a" * 5000,
        "../../../etc/passwd",
        "/dev/zero",
        "\u202edlrow",
        "[red]x[/red]",
        "\ud800",
        "small-audio",
        "image",
    ),
    *([], {}, [[]], [1, 10**5, 10**5], [1] * 70, {"kind": "min-max", "low": 1, "high": 1}, {"class": "os.system"}),
    *([0, 8, 8], [1, 8, 8, 1], [-1, 8, 8], [1.0, 8, 8], [1, 9, 9], [1, 2**27, 1], "per-sample min-max", "image"),
)


@dataclass(frozen=True)
class Case:
    """A student's folder as it was written, examples for it, and what it says of them."""

    folder: Path
    module: Callable[[], nn.Module] | None
    files: list[Path]
    ready: Tensor
    answers: list[str]


def _examples(place: Path) -> dict[str, list[Path]]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "a.png")
    np.save(place / "b.npy", pixels)
    soundfile.write(place / "a.wav", (0.3 * rng.standard_normal(7000)).clip(-1, 1), 8000)
    np.save(place / "v.npy", rng.standard_normal(6).astype(np.float32))
    return {"picture": [place / "a.png", place / "b.npy"], "sound": [place / "a.wav"], "vector": [place / "v.npy"]}


def _answers(folder: Path, module: Callable[[], nn.Module] | None, files: list[Path], ready: Tensor) -> list[str]:
    student = load_student(folder, None if module is None else module())
    (name,) = student.network.reads
    found = [f"{one.label} {one.probability:.5f}" for file in files for one in student.predict(file)]
    return [*found, *(f"{value:.5f}" for value in student.logits({name: ready}).flatten().tolist())]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    place = tmp_path_factory.mktemp("written")
    files = _examples(place)
    made = []
    for name, spec, given in (
        ("picture", PICTURE, NetworkConfig(model="small-image", reads=("picture",))),
        ("sound", SOUND, NetworkConfig(model="small-audio", reads=("sound",))),
        ("vector", VECTOR, Network(nn.Linear(6, 3), "vector")),
    ):
        torch.manual_seed(4)
        values = np.random.default_rng(0).standard_normal((20, *spec.shape)).astype(np.float32)
        data = Dataset.from_arrays("toy", {name: values}, np.arange(20) % 3, input_specs={name: spec})
        network = given.build(3) if isinstance(given, NetworkConfig) else given
        save_student(place / name, network, given, data, "card")
        module = None if isinstance(given, NetworkConfig) else lambda: nn.Linear(6, 3)
        ready = data.inputs[name][:2]
        made.append(Case(place / name, module, files[name], ready, _answers(place / name, module, files[name], ready)))
    return made


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*path, key))


def _spoil_value(content: Any, rng: random.Random) -> Any:
    """One place of a JSON value replaced, removed, doubled or moved."""
    content = copy.deepcopy(content)
    places = [place for place in _places(content) if place]
    *way, last = rng.choice(places)
    node = content
    for key in way:
        node = node[key]
    kind = rng.randrange(6)
    if kind < 3:
        node[last] = rng.choice(EVIL)
    elif kind == 3:
        del node[last]
    elif kind == 4 and isinstance(node, dict):
        node[rng.choice(["extra", "class", "name", "a" * 300, "kind"])] = node[last]
    else:
        inner: Any = node[last]
        for _ in range(rng.choice([1, 3, 400])):
            inner = [inner]
        node[last] = inner
    return content


def _spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    kind = rng.randrange(4)
    at = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.choice([1, 1, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.choice([1, 9, 4000]))
    else:
        data[: len(data) // 2] = b"\0" * (len(data) // 2)
    return bytes(data)


def _spoil_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or another length of it."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice([1, 2])):
        header = _spoil_value(header, rng) if header else header
    text = json.dumps(header).encode()
    told = rng.choice([len(text)] * 6 + [0, 2**40, 2**64 - 1])
    return struct.pack("<Q", told) + text + content[8 + length :]


def _spoil(folder: Path, rng: random.Random) -> bool:
    """Harm a folder; whether its config was sealed again, as a person who forges it would do."""
    config = json.loads((folder / "config.json").read_text())
    tensors = [folder / name for name in config["files"]]
    kind = rng.choice(["values"] * 8 + ["text", "header", "header", "header", "bytes", "bytes", "flip", "lost"])
    if kind == "values":
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            config = _spoil_value(config, rng)
    elif kind == "text":
        path = folder / "config.json"
        path.write_bytes(_spoil_bytes(path.read_bytes(), rng))
        return False
    elif kind == "lost":
        (folder / rng.choice(["config.json", *config["files"]])).unlink()
        return False
    else:
        path = rng.choice(tensors)
        path.write_bytes((_spoil_header if kind == "header" else _spoil_bytes)(path.read_bytes(), rng))
        if kind == "flip":
            return False
        config["files"][path.name] = file_hash(path)
    (folder / "config.json").write_text(sealed(config))
    return True


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"longer than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("part", range(PARTS))
def test_c_a_spoiled_folder_is_refused_in_words_or_answers_as_before(
    cases: list[Case], tmp_path: Path, part: int
) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    for number in range(part, FOLDERS, PARTS):
        rng = random.Random(number)
        case = cases[number // PARTS % len(cases)]
        folder = Path(shutil.copytree(case.folder, tmp_path / str(number)))
        forged = _spoil(folder, rng)
        try:
            with _limits():
                found = _answers(folder, case.module, case.files, case.ready)
        except CrossdistillError as error:
            said.append(str(error))
            continue
        except Exception as error:
            raise AssertionError(f"folder {number} ends in {type(error).__name__}: {str(error)[:300]}") from error
        assert forged or found == case.answers, f"folder {number} answers otherwise, without a word"
    assert len(said) > FOLDERS // PARTS // 2
    assert max(map(len, said)) < 2000, "a sentence is one"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert growth < MOST_GROWTH, f"{growth / 2**20:.0f} MiB more at the peak"


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preparation.safetensors"])
def test_c_what_is_no_file_is_refused_without_waiting(cases: list[Case], tmp_path: Path, name: str, kind: str) -> None:
    folder = Path(shutil.copytree(cases[0].folder, tmp_path / "student"))
    path = folder / name
    path.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "moved" if kind == "link" else Path("/dev/zero"))
    with _limits(), raises(CrossdistillError, name):
        load_student(folder)


def _forge(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(sealed({**config, **fields}))


@pytest.mark.parametrize("classes", [10**6, 10**6 + 1])
def test_c_absurd_numbers_of_classes_take_no_memory(cases: list[Case], tmp_path: Path, classes: int) -> None:
    folder = Path(shutil.copytree(cases[0].folder, tmp_path / "student"))
    _forge(
        folder,
        classes=[str(number) for number in range(classes)],
        model={"name": "small-image", "options": {"classes": classes}},
    )
    with _limits(), raises(CrossdistillError, classes):
        load_student(folder)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"classes": True}, ("classes", True)),
        ({"classes": 3.0}, ("classes", "integer")),
        ({"classes": 3, "width": 9}, ("'width'",)),
        ({"classes": 3, "deep": {"er": [[[[[[[[[1]]]]]]]]]}}, ("nested",)),
    ],
)
def test_c_options_are_those_of_the_models_signature(
    cases: list[Case], tmp_path: Path, options: dict[str, Any], facts: tuple[object, ...]
) -> None:
    folder = Path(shutil.copytree(cases[0].folder, tmp_path / "student"))
    _forge(folder, model={"name": "small-image", "options": options})
    with raises(CrossdistillError, *facts):
        load_student(folder)


@pytest.mark.parametrize("shape", [[1, 2**14, 2**14], [1, 16384, 16385], [1, 9, 9]])
def test_c_inputs_that_the_network_does_not_take_are_refused_before_memory_is_taken(
    cases: list[Case], tmp_path: Path, shape: list[int]
) -> None:
    folder = Path(shutil.copytree(cases[0].folder, tmp_path / "student"))
    _forge(folder, inputs={"picture": {"kind": "image", "shape": shape, "options": {}}})
    with _limits(), raises(CrossdistillError, shape[1]):
        load_student(folder)


def test_c_logits_that_are_not_finite_are_no_answer(cases: list[Case], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cases[2].folder, tmp_path / "student"))
    options = {"normalisation": {"kind": "mean and standard deviation", "mean": 0.0, "deviation": 1e-300}}
    _forge(folder, inputs={"vector": {"kind": "array", "shape": [6], "options": options}})
    with raises(CrossdistillError, "NaN or Inf", 0):
        load_student(folder, nn.Linear(6, 3)).predict(cases[2].files)
