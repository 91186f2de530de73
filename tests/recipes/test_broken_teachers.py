"""Networks of sound whose weights are NaN or infinite: found when they are opened, before anything is computed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from facts import raises

from crossdistill import Batch, run
from crossdistill.backends.onnx import OnnxModule
from crossdistill.errors import DataError, RecipeError
from crossdistill.probes.frozen import open_frozen
from crossdistill.recipes import make
from crossdistill.runtime.tensor_file import read_weights, write_tensors

WEIGHT = "encoder.layers.1.attention.q_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found_before_training(tmp_path: Path, value: float) -> None:
    soundfile, transformers = pytest.importorskip("soundfile"), pytest.importorskip("transformers")
    pytest.importorskip("soxr")
    folder = tmp_path / "broken"
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    for name in ("broken", "whole"):
        transformers.HubertModel(config).save_pretrained(tmp_path / name)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / name)
    weights = read_weights(folder / "model.safetensors")
    weights[WEIGHT][3] = value
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    with raises(DataError, folder, WEIGHT, 16, 256):
        open_frozen(str(folder))
    lines = ["path,domain"]
    for number in range(12):
        wave = np.random.default_rng(number).normal(0, 0.1, 1600).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
        lines.append(f"{number}.wav,{'music' if number % 2 else 'speech'}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    words = [f"data.manifest={tmp_path / 'clips.csv'}", "data.workers=0", f"student=transformers:{tmp_path / 'whole'}"]
    words += [f"teachers.{name}=transformers:{folder}" for name in ("speech", "music")]
    with raises(RecipeError, "teachers.speech", "teachers.music", folder, WEIGHT, 16, 256):
        run(make("speech-music/translate", words), tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_a_file_whose_outputs_are_no_numbers_is_found_by_its_trial_pass(broken: bool) -> None:
    def answered(names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [given["x"] * (np.nan if broken else 2)]

    argument = SimpleNamespace(name="x", type="tensor(float)", shape=["rows", 3])
    session = SimpleNamespace(get_inputs=lambda: [argument], get_outputs=lambda: [SimpleNamespace(name="y")])
    session.run = answered
    module = OnnxModule(session, "", 1, {}, 0, {})
    batch = Batch({"audio": torch.ones(2, 3)}, torch.arange(2))
    if not broken:
        module.keep_outputs_of_rows(batch, ["audio"], "onnx:a.onnx")
        assert module.taps == ("y",)
        return
    with raises(DataError, "onnx:a.onnx", "'y'"):
        module.keep_outputs_of_rows(batch, ["audio"], "onnx:a.onnx")
