"""Networks of transformers in training: no block is left out and no frame hidden at random."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import states

from crossdistill import Batch, Dataset, InputSpec, Network, NetworkConfig, load_student
from crossdistill.backends.names import Built, build
from crossdistill.backends.transformers_body import TransformersBody
from crossdistill.errors import TapError
from crossdistill.outputs import Signal
from crossdistill.student import save_student

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": False}
STILL = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)
SOUNDS = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0))
TAPS = (Signal.feature("layer1"), Signal.feature("layer2"))


def data() -> Dataset:
    spec = {"audio": InputSpec("array", (6000,))}
    return Dataset.from_arrays("sounds", {"audio": torch.cat([SOUNDS] * 3)}, ["a", "b"] * 3, input_specs=spec)


def source(folder: Path, kind: str, **options: Any) -> NetworkConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    settings = {**sizes, **STILL, "layerdrop": 0.9, "mask_time_prob": 0.5, "mask_feature_prob": 0.3, **options}
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SOUND))
    return NetworkConfig(model=f"transformers:{folder}")


def built(config: NetworkConfig, how: str | None = None, *, student: bool = True) -> Built:
    made = build(config.model, {}, ("audio",), how, "float32", member="it", dataset=data(), student=student)
    return Built(Network(made.network.module, ("audio",), made.network.taps), made.notes)


def layers(network: Network) -> list[torch.Tensor]:
    outputs = network(Batch({"audio": SOUNDS}, torch.arange(2)), set(TAPS))
    return [outputs.need(tap).detach() for tap in TAPS]


@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "Wav2Vec2"])
def test_a_student_runs_all_blocks_on_all_frames(tmp_path: Path, kind: str) -> None:
    config = source(tmp_path / "model", kind)
    made = built(config)
    states(made.notes[0], "layerdrop", 0.9, "SpecAugment", 0.5)
    wanted = layers(made.network.eval())
    for _ in range(5):
        for one, other in zip(layers(made.network.train()), wanted, strict=True):
            torch.testing.assert_close(one, other)
    save_student(tmp_path / "student", made.network, config, data(), "")
    _, report = transformers.AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values()), report
    again = load_student(tmp_path / "student").network.train()
    torch.testing.assert_close(layers(again), wanted)


def test_without_that_a_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersBody, "settle", lambda self: [])
    dropping = built(source(tmp_path / "drops", "Hubert", layerdrop=1.0, mask_time_prob=0.0)).network
    with pytest.raises(TapError):
        layers(dropping.train())
    hiding = built(source(tmp_path / "hides", "Hubert", layerdrop=0.0)).network
    assert not torch.equal(layers(hiding.train())[0], layers(hiding.eval())[0])


def test_a_teacher_is_left_alone_unless_it_trains(tmp_path: Path) -> None:
    config = source(tmp_path / "model", "Hubert")
    for how, drop in (("frozen", 0.9), ("last-1", 0.0), ("all", 0.0)):
        made = built(config, how, student=False)
        assert made.network.module.body.model.config.layerdrop == drop
        assert ("layerdrop" in made.notes[0]) is (drop == 0.0)
    quiet = built(source(tmp_path / "quiet", "Hubert", layerdrop=0.0, mask_time_prob=0.0, mask_feature_prob=0.0), "all")
    assert "layerdrop" not in quiet.notes[0]
    assert "SpecAugment" not in quiet.notes[0]


def test_layers_that_keep_their_own_number_are_settled_too() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_source_positions": 20}
    encoder = transformers.WhisperModel(transformers.WhisperConfig(**sizes, encoder_layerdrop=0.4)).get_encoder()
    body = TransformersBody(encoder, "audio", classifier=False, pooled=False, projected=False)
    (said,) = body.settle()
    states(said, 0.4)
    assert encoder.layerdrop == 0.0
    assert body.settle() == []
