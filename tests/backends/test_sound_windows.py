"""Frames of Whisper's encoder and AST, which read windows of fixed length: a batch gives what single clips give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossdistill import Batch, Distiller, Network, run
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.time_axis import PatchAxis
from crossdistill.backends.transformers import load
from crossdistill.backends.transformers_body import TransformersBody, with_kind
from crossdistill.errors import ApplicabilityError
from crossdistill.methods import MultiDistillation
from crossdistill.outputs import Signal
from crossdistill.probes.frozen import open_frozen
from crossdistill.recipes import make

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

LENGTHS = torch.tensor([9000, 4321, 400])
CLIPS = [torch.randn(int(length)) * 0.1 for length in LENGTHS]
Folder = Callable[[str], Path]


def body_of(folder: Path) -> TransformersBody:
    body = load(str(folder), {}).body
    assert isinstance(body, TransformersBody)
    return body


def whisper(folder: Folder) -> TransformersBody:
    """Of a window of 2 s: 100 frames of 20 ms."""
    return body_of(folder("whisper"))


def ast(folder: Folder) -> TransformersBody:
    """Of a window of 64 hops of 10 ms: three rows of patches, whose 7 steps are 8 hops apart."""
    sizes: dict[str, Any] = {"num_mel_bins": 32, "max_length": 64, "frequency_stride": 8, "time_stride": 8}
    blocks = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = transformers.ASTModel(transformers.ASTConfig(**blocks, **sizes, patch_size=16))
    body = with_kind(model, "audio", classifier=False, pooled=True)
    from crossdistill.backends.frontends import KaldiFrontend

    settings = {"sampling_rate": 16000, "num_mel_bins": 32, "max_length": 64}
    body.put_behind(KaldiFrontend(settings), settings)
    return body


def network_of(body: TransformersBody) -> Network:
    module = Pretrained(body).eval()
    return Network(module, ("audio",), module.taps)


def padded(clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch with garbage in its padding."""
    lengths = torch.tensor([len(clip) for clip in clips])
    values = torch.randn(len(clips), int(lengths.max())) * 50
    for row, clip in enumerate(clips):
        values[row, : len(clip)] = clip
    return {"values": values, "lengths": lengths}


@pytest.mark.parametrize(("make", "frames"), [(whisper, [29, 14, 2]), (ast, [7, 3, 1])])
def test_a_batch_gives_what_single_clips_give(make: Any, frames: list[int], folder: Folder) -> None:
    network = network_of(make(folder))
    found = network.frames(LENGTHS)
    assert found is not None
    assert found.tolist() == frames
    signals = {Signal.EMBEDDING, *map(Signal.feature, network.taps)}
    with torch.no_grad():
        whole = network(Batch({"audio": padded(CLIPS)}, torch.arange(3)), signals)
        for row, clip in enumerate(CLIPS):
            alone = network(Batch({"audio": clip[None]}, torch.arange(1)), signals)
            for tap in network.taps:
                assert alone.features[tap].shape[1] == frames[row]
                torch.testing.assert_close(
                    whole.features[tap][row, : frames[row]], alone.features[tap][0], rtol=1e-4, atol=1e-5
                )
            torch.testing.assert_close(whole.need(Signal.EMBEDDING)[row], alone.need(Signal.EMBEDDING)[0])
    assert not network.unkeyed()


def test_whisper_s_frames_are_those_of_the_clip_in_its_window(folder: Folder) -> None:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder("whisper"))
    encoder = transformers.WhisperModel.from_pretrained(folder("whisper")).eval().get_encoder()
    long = torch.randn(40_000) * 0.1
    clips = [*CLIPS, long]
    features = extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt").input_features
    network = network_of(whisper(folder))
    with torch.no_grad():
        wanted = encoder(features, output_hidden_states=True).hidden_states
        found = network(Batch({"audio": padded(clips)}, torch.arange(4)), {Signal.feature("layer1")})
    layer = found.features["layer1"]
    # 40,000 samples have 125 frames, and its window 100: the rest is cut, as by its feature extractor.
    assert layer.shape[1] == 100
    for row, frames in enumerate([29, 14, 2, 100]):
        torch.testing.assert_close(layer[row, :frames], wanted[1][row, :frames], rtol=1e-3, atol=1e-4)


def test_ast_s_frames_are_means_over_frequencies(folder: Folder) -> None:
    body = ast(folder)
    states: list[torch.Tensor] = []
    body.layers()[1].register_forward_hook(lambda _m, _a, out: states.append(out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        found = network_of(body)(Batch({"audio": CLIPS[1][None]}, torch.arange(1)), {Signal.feature("layer2")})
    (tokens,) = states
    # Token 2 + f * 7 + t is the patch of frequency row f at step t.
    assert tokens.shape == (1, 2 + 3 * 7, 16)
    for step in range(3):
        mean = torch.stack([tokens[0, 2 + row * 7 + step] for row in range(3)]).mean(0)
        torch.testing.assert_close(found.features["layer2"][0, step], mean)


@pytest.mark.parametrize("make", [whisper, ast])
def test_frames_can_be_rewritten_and_unchanged_ones_change_nothing(make: Any, folder: Folder) -> None:
    network = network_of(make(folder))
    batch = Batch({"audio": padded(CLIPS)}, torch.arange(3))
    network.probe(batch)
    with torch.no_grad():
        before, same, other = (
            network.edited(batch, {"layer1": edit}).need(Signal.EMBEDDING)
            for edit in (lambda value: value, lambda value: value.clone(), lambda value: value * 0)
        )
    torch.testing.assert_close(before, same)
    assert not torch.allclose(before, other, atol=1e-3)
    axis = network.module.body.axis
    if isinstance(axis, PatchAxis):
        states, frames = torch.randn(2, 2 + 3 * 7, 16), torch.randn(2, 7, 16)
        torch.testing.assert_close(axis.read(axis.write(states, frames)), frames)
        assert torch.equal(axis.write(states, frames)[:, :2], states[:, :2])


def hubert() -> Any:
    """A model of 50 frames a second."""
    sizes: dict[str, Any] = {"conv_dim": [8, 8], "conv_kernel": [20, 16], "conv_stride": [20, 16]}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    blocks = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.HubertModel(transformers.HubertConfig(**blocks, **sizes, layerdrop=0.0))


def student() -> Network:
    """A HuBERT of 50 frames a second."""
    module = Pretrained(with_kind(hubert(), "audio", classifier=False, pooled=False))
    return Network(module, ("audio",), module.taps)


@pytest.mark.parametrize(
    ("make", "rates"), [(whisper, {}), (ast, {"student": 50.0, "teacher": 12.5})], ids=["whisper", "ast"]
)
def test_their_layers_teach_a_student_of_waves(make: Any, rates: dict[str, float], folder: Folder) -> None:
    teacher = network_of(make(folder)).requires_grad_(False)
    settings = MultiDistillation(routing="all", frame_rates=rates)
    clips = {"audio": padded(CLIPS[:2])}
    distiller = Distiller(student(), {"teacher": teacher}, settings, example=clips, task="none")
    distiller.eval()
    losses = [
        distiller(inputs, None)
        for inputs in (clips, {"audio": {**clips["audio"], "values": clips["audio"]["values"].clone()}})
    ]
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)
    # Clips that are longer than the window have frames that the teacher does not give.
    long = {"audio": padded([torch.randn(60_000), CLIPS[0]])}
    with pytest.raises(ApplicabilityError, match=r"60,000 samples.*crop_seconds"):
        distiller(long, None)


def test_whisper_is_the_last_teacher_of_a_second_stage(folder: Folder, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    lines = ["path,domain"]
    for number in range(12):
        wave = np.random.default_rng(number).standard_normal(1600 + 320 * (number % 3)) * 0.1
        soundfile.write(tmp_path / f"{number}.wav", wave.astype(np.float32), 16_000)
        lines.append(f"{number}.wav,speech")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    for name in ("student", "speech"):
        hubert().save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text('{"sampling_rate": 16000, "do_normalize": false}')
    words = {"student": tmp_path / "student", "teachers.speech": tmp_path / "speech"}
    words["teachers.whisper"] = folder("whisper")
    settings = [f"{name}=transformers:{path}" for name, path in words.items()]
    settings += [f"data.manifest={tmp_path / 'clips.csv'}", "data.workers=0", "steps=1", "batch_size=4"]
    run(make("speech-music/second-stage", settings), tmp_path / "out")
    said = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(said[-1])
    assert last["kind"] == "validation"
    assert all(0 < last[f"whisper/layer{number}"] < 10 for number in (1, 2))
    assert any("raw/multi-distillation/whisper" in line for line in said)


def test_probes_read_the_frames_of_the_clip(folder: Folder) -> None:
    from crossdistill.data.rendering import Sound

    frozen = open_frozen(f"transformers:{folder('whisper')}")
    assert frozen.seconds == 2.0
    states = frozen.states([Sound(CLIPS[0], 16000)], torch.device("cpu"))
    assert states.shape[:3] == (1, 29, 2)


# transformers passes WavLM's masks to PyTorch in two types, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "whisper", "ast"])
def test_a_teacher_in_bfloat16_gives_nearly_the_same_in_float32(kind: str, folder: Folder) -> None:
    if kind in ("whisper", "ast"):
        body = {"whisper": whisper, "ast": ast}[kind](folder)
    else:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"conv_dim": [8, 8], "conv_kernel": [20, 16], "conv_stride": [20, 16]}
        sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
        blocks = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**blocks, **sizes))
        body = with_kind(model, "audio", classifier=False, pooled=False)
    batch = Batch({"audio": padded(CLIPS[:2])}, torch.arange(2))
    signals = {Signal.EMBEDDING, Signal.feature("layer2")}
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = network_of(body)
        network.module.to(dtype)
        if body.frontend is not None:
            assert {value.dtype for value in body.frontend.buffers()} == {torch.float32}
        with torch.no_grad():
            found.append(network(batch, signals))
    exact, rough = found
    frames = int(network.frames(LENGTHS)[1])  # type: ignore[index]
    for signal in signals:
        mine, theirs = rough.need(signal), exact.need(signal)
        assert mine.dtype == torch.float32
        if signal.kind == "feature":
            mine, theirs = mine[:, :frames], theirs[:, :frames]
        error = (mine - theirs).norm() / theirs.norm()
        assert 0 < float(error) < 0.03
