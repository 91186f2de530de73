import json
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises

from crossdistill import Batch, Dataset, InputSpec, NetworkConfig, load_student
from crossdistill.errors import SettingError
from crossdistill.models import build_network
from crossdistill.outputs import Signal
from crossdistill.student import save_student

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "feature_size": 1}


def teacher(folder: Path, kind: str = "Hubert", **options: Any) -> Any:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 256}
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**{**sizes, **options}))
    torch.nn.init.normal_(model.encoder.layer_norm.bias)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**SOUND, "do_normalize": False}))
    return model


def test_the_student_of_two_blocks_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = build_network("hubert-student-2")
    assert sum(one.numel() for one in network.parameters()) == 23_491_200
    assert network.taps == ("layer1", "layer2")


@pytest.mark.parametrize("kind", ["Hubert", "WavLM"])
def test_it_starts_from_a_teacher(tmp_path: Path, kind: str) -> None:
    given = teacher(tmp_path, kind).state_dict()
    options = {"width": 64, "initial": f"transformers:{tmp_path}"}
    own = build_network("hubert-student-2", **options).module.body.model.state_dict()
    assert any("pos_conv_embed.conv.parametrizations.weight.original0" in name for name in own)
    assert [name for name, value in own.items() if not torch.equal(value, given[name])] == []
    left = build_network("hubert-student-2", initial_norm=False, **options).module.body.model.state_dict()
    other = [name for name, value in left.items() if not torch.equal(value, given[name])]
    assert other == ["encoder.layer_norm.bias"]


def test_a_teacher_of_another_shape_is_refused(tmp_path: Path) -> None:
    teacher(tmp_path)
    for name, options in (("hubert-student-2", {"width": 128}), ("hubert-student-4", {"width": 64})):
        with raises(SettingError, str(tmp_path)):
            build_network(name, initial=f"transformers:{tmp_path}", **options)


def test_a_saved_student_opens_without_its_teacher_and_gives_a_model_of_transformers(tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    options = {"width": 64, "initial": f"transformers:{tmp_path / 'teacher'}"}
    source = NetworkConfig(model="hubert-student-2", options=options)
    sounds = torch.randn(4, 1200)
    spec = InputSpec("array", (1200,))
    data = Dataset.from_arrays("sounds", {"audio": sounds}, ["a", "b", "a", "b"], input_specs={"audio": spec})
    network = source.build(2).eval()
    save_student(tmp_path / "student", network, source, data, "")
    (tmp_path / "teacher").rename(tmp_path / "away")
    again = load_student(tmp_path / "student").network
    again.module.body.model.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        batch, signals = Batch({"audio": sounds}, torch.arange(4)), {Signal.EMBEDDING, Signal.feature("layer2")}
        one, other, states = network(batch, signals), again(batch, signals), plain(sounds).last_hidden_state
    assert torch.equal(one.need(Signal.EMBEDDING), other.need(Signal.EMBEDDING))
    assert torch.equal(one.features["layer2"], states)
