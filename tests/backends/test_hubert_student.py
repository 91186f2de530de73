import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises

from crossdistill import Batch, Dataset, InputSpec, NetworkConfig, Recipe, Stage, load_student
from crossdistill.errors import SettingError
from crossdistill.methods.multi_distillation import MultiDistillation
from crossdistill.models import build_network
from crossdistill.outputs import Signal
from crossdistill.planning.plan import prepare
from crossdistill.student import save_student

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "feature_size": 1}


def teacher(folder: Path, kind: str = "Hubert", *, seed: int = 3, **options: Any) -> Any:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 256}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**{**sizes, **options}))
    torch.nn.init.normal_(model.encoder.layer_norm.bias)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**SOUND, "do_normalize": False}))
    return model


def parameters(layers: int, width: int, inner: int) -> int:
    """Weights of the student by its published sizes: no biases in convolutions, weight norm over 128 positions."""
    convolutions = 512 * (10 + 4 * 512 * 3 + 2 * 512 * 2) + 2 * 512
    projection = 512 * width + width
    positions = width * (width // 16) * 128 + 128 + width
    attention, feed_forward = 4 * (width * width + width), 2 * width * inner + inner + width
    return convolutions + projection + positions + 2 * width + layers * (attention + feed_forward + 4 * width)


@pytest.mark.parametrize(
    ("name", "published", "wanted"),
    [
        ("hubert-student-2", 23_491_200, parameters(2, 768, 3072)),
        ("hubert-student-3", 30_579_072, parameters(3, 768, 3072)),
        ("hubert-student-2-wide", 61_650_048, parameters(2, 1536, 3072)),
    ],
)
def test_students_have_the_published_number_of_weights(name: str, published: int, wanted: int) -> None:
    with torch.device("meta"):
        network = build_network(name)
    assert sum(one.numel() for one in network.parameters()) == wanted == published
    assert network.taps == ("projection", *(f"layer{number}" for number in range(1, int(name[15]) + 1)))
    config = network.module.body.model.config
    assert config.num_attention_heads == (6 if "wide" in name else 12)
    assert (config.layerdrop, config.mask_time_prob) == (0.0, 0.0)


def test_the_wide_student_has_no_width_to_choose() -> None:
    with raises(SettingError, "width"):
        build_network("hubert-student-2-wide", width=768)
    for factor in (-1.0, float("inf"), float("nan")):
        with raises(SettingError, "feature_grad_mult"):
            build_network("hubert-student-2", width=64, feature_grad_mult=factor)


def test_the_gradient_of_the_convolutions_is_scaled_and_nothing_else() -> None:
    sounds, found = torch.randn(2, 1200), {}
    for factor in (0.1, 1.0):
        torch.manual_seed(0)
        options = {} if factor == 0.1 else {"feature_grad_mult": factor}
        network = build_network("hubert-student-2", width=64, **options).eval()
        outputs = network(Batch({"audio": sounds}, torch.arange(2)), {Signal.feature("layer2")}).features["layer2"]
        outputs.square().sum().backward()
        found[factor] = outputs, {name: one.grad for name, one in network.module.body.model.named_parameters()}
    assert torch.equal(found[0.1][0], found[1.0][0])
    assert found[1.0][1]["feature_extractor.conv_layers.0.conv.weight"].abs().max() > 0
    for name, gradient in found[1.0][1].items():
        share = 0.1 if name.startswith("feature_extractor.") else 1.0
        torch.testing.assert_close(found[0.1][1][name], gradient * share, rtol=1e-4, atol=1e-7)


def test_the_projection_is_what_the_positional_convolution_reads() -> None:
    network = build_network("hubert-student-2", width=64).eval()
    model, heard = network.module.body.model, list[torch.Tensor]()
    model.encoder.pos_conv_embed.register_forward_pre_hook(lambda _, given: heard.append(given[0].clone()))
    # Of the shorter row, the frames that it does not have are zeros.
    padded = {"values": torch.randn(2, 1200), "lengths": torch.tensor([1200, 800])}
    signal = Signal.feature("projection")
    with torch.no_grad():
        found = network(Batch({"audio": padded}, torch.arange(2)), {signal}).need(signal)
    assert torch.equal(found[0], heard[-1][0])
    frames = int(network.frames(torch.tensor([800])))
    assert 0 < frames < found.shape[1]
    assert torch.equal(found[1, :frames], heard[-1][1, :frames])
    assert not heard[-1][1, frames:].any()


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


def test_its_convolutions_are_as_wide_as_asked(tmp_path: Path) -> None:
    given = teacher(tmp_path, conv_dim=[16] * 7).state_dict()
    options = {"width": 64, "initial": f"transformers:{tmp_path}"}
    own = build_network("hubert-student-2", channels=16, **options).module.body.model.state_dict()
    assert own["feature_extractor.conv_layers.6.conv.weight"].shape == (16, 16, 2)
    assert [name for name, value in own.items() if not torch.equal(value, given[name])] == []
    with raises(SettingError, "conv_dim", "16", "512", "options.channels"):
        build_network("hubert-student-2", **options)
    with raises(SettingError, "channels", "0"):
        build_network("hubert-student-2", channels=0)


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
    plain = transformers.AutoModel.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        batch, signals = Batch({"audio": sounds}, torch.arange(4)), {Signal.EMBEDDING, Signal.feature("layer2")}
        one, other, states = network(batch, signals), again(batch, signals), plain(sounds).last_hidden_state
    assert torch.equal(one.need(Signal.EMBEDDING), other.need(Signal.EMBEDDING))
    assert torch.equal(one.features["layer2"], states)


def test_the_key_of_a_stage_has_the_weights_that_the_student_starts_from(tmp_path: Path) -> None:
    sounds = torch.randn(8, 800)
    spec = InputSpec("array", (800,))
    data = Dataset.from_arrays("sounds", {"audio": sounds}, task="none", input_specs={"audio": spec})
    stage = Stage(method=MultiDistillation(routing="all"), epochs=1, batch_size=4)

    def key(**options: Any) -> str:
        student = NetworkConfig(model="hubert-student-2", options={"width": 64, **options})
        big = NetworkConfig(model="hubert-student-2", options={"width": 64})
        recipe = Recipe(data=data, student=student, teachers={"big": big}, stages=(stage,))
        return prepare(recipe, data, torch.device("cpu")).jobs[0].key

    for place, seed in (("one", 3), ("other", 4)):
        teacher(tmp_path / place, seed=seed)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, other, copy = (key(initial=f"transformers:{tmp_path / place}") for place in ("one", "other", "copy"))
    assert len({one, other, key()}) == 3
    # The place of equal weights is no part of it; what is copied of them is.
    assert copy == one
    assert key(initial=f"transformers:{tmp_path / 'one'}", initial_norm=False) != one
    teacher(tmp_path / "one", seed=4)
    assert key(initial=f"transformers:{tmp_path / 'one'}") == other
    # Gradients of convolutions are part of what a stage trains.
    assert key(initial=f"transformers:{tmp_path / 'copy'}", feature_grad_mult=1.0) != one
