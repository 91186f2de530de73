"""MERT loads as HubertModel after a check of its configuration; code of a folder is never run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from named import made
from safetensors.torch import load_file, save_file

from crossdistill import Batch, Dataset, Network
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers import load, modality_of
from crossdistill.data.rendering import SoundRendering
from crossdistill.errors import SettingError
from crossdistill.outputs import Signal

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"conv_dim": [8, 8], "conv_kernel": [10, 8], "conv_stride": [8, 4], "num_feat_extract_layers": 2}
SIZES |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
CODE = {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"}
OLD = {"original0": "weight_g", "original1": "weight_v"}
WAVES = torch.randn(2, 900)


def published(
    folder: Path, model_type: str = "mert_model", *, old: bool = True, rate: int = 24000, **given: Any
) -> Any:
    """A folder as MERT's are, with weights of the HuBERT that is returned."""
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**SIZES)).eval()
    model.save_pretrained(folder)
    if old:
        weights = load_file(folder / "model.safetensors")
        for new, name in OLD.items():
            place = "encoder.pos_conv_embed.conv."
            weights[place + name] = weights.pop(f"{place}parametrizations.weight.{new}")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "architectures": ["MERTModel"], "auto_map": CODE, "sample_rate": rate}
    config |= {"feature_extractor_cqt": False, "deepnorm": False, "attention_relax": 32.0, **given}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    for name in ("configuration_MERT.py", "modeling_MERT.py"):
        (folder / name).write_text("raise SystemExit('code of the folder has run')")
    processor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": rate, "feature_size": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "do_normalize": True}))
    return model


@pytest.mark.parametrize(
    ("model_type", "old", "given"),
    [
        ("mert_model", True, {}),
        ("music_hubert", False, {"deepnorm": "absent", "feature_extractor_cqt": "absent", "attention_relax": "absent"}),
    ],
)
def test_its_layers_are_those_of_the_hubert(tmp_path: Path, model_type: str, old: bool, given: dict[str, Any]) -> None:
    theirs = published(tmp_path, model_type, old=old, **given)
    loaded = load(str(tmp_path), {})
    assert type(loaded.body.get_submodule("model")).__name__ == "HubertModel"
    module = Pretrained(loaded.body).eval()
    network = Network(module, ("audio",), module.taps)
    signals = {Signal.EMBEDDING, *map(Signal.feature, network.taps)}
    with torch.no_grad():
        wanted = theirs(WAVES, output_hidden_states=True)
        found = network(Batch({"audio": WAVES}, torch.arange(2)), signals)
    for number in (1, 2, 3):
        assert torch.equal(found.features[f"layer{number}"], wanted.hidden_states[number])
    assert torch.equal(found.need(Signal.EMBEDDING), wanted.last_hidden_state.mean(1))
    assert modality_of(str(tmp_path), {}) == "audio"
    assert isinstance(loaded.rendering, SoundRendering)
    assert loaded.rendering.rate == 24000
    (note,) = loaded.notes
    assert "HubertModel" in note
    assert "is not run" in note


def test_a_run_says_so_and_new_weights_are_drawn_for_the_architecture(tmp_path: Path, digits: Dataset) -> None:
    published(tmp_path)
    built = made(tmp_path, digits, "frozen", reads=("image",))
    assert any("MERT" in note for note in built.notes)
    drawn = load(str(tmp_path), {"pretrained": False}).body
    assert sum(one.numel() for one in drawn.parameters()) == sum(one.numel() for one in built.network.parameters())


def _renamed(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[new] = weights.pop(old) if old in weights else torch.zeros(2)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("given", "change", "facts"),
    [
        ({"feature_extractor_cqt": True}, None, ["feature_extractor_cqt", "never run"]),
        ({"deepnorm": True}, None, ["deepnorm", "never run"]),
        ({"deepnorm": "true"}, None, ["deepnorm"]),
        ({"sample_rate": 16000}, None, ["16000", "24000"]),
        ({}, _renamed("encoder.layer_norm.bias", "other"), ["encoder.layer_norm.bias"]),
        ({}, _renamed("encoder.pos_conv_embed.conv.weight_g", "other"), ["encoder.pos_conv_embed.conv", "original0"]),
        ({}, _renamed("none", "encoder.layers.0.final_alpha"), ["final_alpha", "no place"]),
    ],
)
def test_another_network_than_hubert_is_refused(
    tmp_path: Path, given: dict[str, Any], change: Callable[[Path], None] | None, facts: list[str]
) -> None:
    published(tmp_path, **given)
    if change is not None:
        change(tmp_path)
    with pytest.raises(SettingError) as caught:
        load(str(tmp_path), {})
    for fact in (*facts, tmp_path.name):
        assert fact in str(caught.value)


def test_weights_beside_the_encoder_are_named(tmp_path: Path) -> None:
    published(tmp_path)
    _renamed("none", "label_embeddings")(tmp_path)
    assert any("label_embeddings" in note for note in load(str(tmp_path), {}).notes)


def test_another_model_that_needs_code_of_its_folder_is_refused(tmp_path: Path) -> None:
    published(tmp_path, "hubert")
    with pytest.raises(SettingError, match=r"MERTModel.*never run"):
        load(str(tmp_path), {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["HubertModel"]}))
    # The architecture is one of transformers, so that the code is not needed.
    assert any("is not run" in note for note in load(str(tmp_path), {}).notes)
