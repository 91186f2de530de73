"""Networks of sound whose weights are NaN or infinite: found when they are opened, before anything is computed."""

from pathlib import Path

import numpy as np
import pytest
from facts import raises

from crossdistill import run
from crossdistill.errors import DataError, RecipeError
from crossdistill.probes.frozen import open_frozen
from crossdistill.recipes import make
from crossdistill.runtime.tensor_file import read_weights, write_tensors

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
transformers = pytest.importorskip("transformers")
WEIGHT = "encoder.layers.1.attention.q_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found_before_training(tmp_path: Path, value: float) -> None:
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
