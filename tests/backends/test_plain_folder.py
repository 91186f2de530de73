"""A student that is a model of transformers is in a folder that transformers opens, with the same outputs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises
from safetensors.torch import load_file
from torch import Tensor

from crossdistill import Batch, Dataset, InputSpec, Network, NetworkConfig, load_student
from crossdistill.backends.names import build
from crossdistill.backends.saved import plain_model
from crossdistill.errors import DataError, RunError, SettingError, ShapeError
from crossdistill.models import build_network
from crossdistill.outputs import Signal
from crossdistill.probes.frozen import open_frozen
from crossdistill.run_folder.merge import merge_folders
from crossdistill.run_folder.student_files import FORMAT, PLAIN_FORMAT, sealed
from crossdistill.runtime.hashing import file_hash
from crossdistill.student import save_student

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

Folder = Callable[[str], Path]

SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "feature_size": 1}
SOUNDS = torch.randn(4, 1200, generator=torch.Generator().manual_seed(0))
SMALL = NetworkConfig(model="hubert-student-2", options={"width": 64})


def data(labels: tuple[str, ...] = (), rate: int = 16_000) -> Dataset:
    options = {"rendering": {"type": "sound", "rate": rate, "kind": "wave", "seconds": 1200 / rate}}
    spec = InputSpec("wave", (1200,), options)
    targets = {"targets": [labels[row % len(labels)] for row in range(4)]} if labels else {"task": "none"}
    return Dataset.from_arrays("sounds", {"audio": SOUNDS}, input_specs={"audio": spec}, **targets)


def student_folder(folder: Path, seed: int = 0, config: NetworkConfig = SMALL) -> Path:
    torch.manual_seed(seed)
    save_student(folder, config.build(0), config, data(), "card")
    return folder


def opened(folder: Path, auto: str = "AutoModel") -> Any:
    """The model in a folder, after a check that it has all of its weights and no others."""
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def layers(network: Network) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = network.eval()(Batch({"audio": SOUNDS}, torch.arange(4)), set(map(Signal.feature, network.taps)))
    return dict(outputs.features)


def test_transformers_opens_the_folder_with_equal_bits(tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "student")
    loaded, model = load_student(folder).network, opened(folder)
    assert type(model) is transformers.HubertModel
    with torch.no_grad():
        wanted, found = model(SOUNDS, output_hidden_states=True), layers(loaded)
        projected = model.feature_projection(model.feature_extractor(SOUNDS).transpose(1, 2))
    assert list(found) == ["projection", "layer1", "layer2"]
    assert torch.equal(found["projection"], projected)
    assert torch.equal(found["layer1"], wanted.hidden_states[1])
    assert torch.equal(found["layer2"], wanted.last_hidden_state)


def test_its_feature_extractor_reads_recordings_as_it_does(tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "student")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    values = extractor([wave.numpy() for wave in SOUNDS], sampling_rate=16_000, return_tensors="pt").input_values
    assert torch.equal(values, SOUNDS)
    # So the folder is a network by name, too, and a student starts from it.
    again, wanted = open_frozen(f"transformers:{folder}").network, layers(load_student(folder).network)
    # Frozen weights take another path of torch's matrix products, with other rounding.
    torch.testing.assert_close(layers(again), {tap: wanted[tap] for tap in ("layer1", "layer2")})
    started = build_network("hubert-student-2", width=64, initial=f"transformers:{folder}")
    assert all(torch.equal(value, wanted[tap]) for tap, value in layers(started).items())


def test_a_student_of_a_folder_is_a_plain_folder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    transformers.WavLMModel(transformers.WavLMConfig(**sizes)).save_pretrained(tmp_path / "wavlm")
    (tmp_path / "wavlm" / "preprocessor_config.json").write_text(json.dumps(SOUND))
    name = f"transformers:{tmp_path / 'wavlm'}"
    sounds = data(("high", "low"))
    with torch.random.fork_rng():
        network = build(name, {}, ("audio",), None, "float32", member="it", dataset=sounds, student=True).network
    network = Network(network.module, ("audio",), network.taps)
    save_student(tmp_path / "student", network, NetworkConfig(model=name), sounds, "card")
    shutil.rmtree(tmp_path / "wavlm")
    # The new last layer for the data's classes stands beside the model.
    assert sorted(load_file(tmp_path / "student" / "head.safetensors")) == ["head.bias", "head.weight"]
    student, model = load_student(tmp_path / "student"), opened(tmp_path / "student")
    with torch.no_grad():
        states = model(SOUNDS).last_hidden_state
    assert torch.equal(layers(student.network)["layer2"], states)
    assert torch.equal(student.logits({"audio": SOUNDS}), student.network.module.head(states.mean(1)))
    assert torch.equal(
        student.logits({"audio": SOUNDS}), network.eval()(Batch({"audio": SOUNDS}, torch.arange(4))).logits
    )


@pytest.mark.parametrize(
    ("name", "auto"), [("vit", "AutoModelForImageClassification"), ("ast", "AutoModelForAudioClassification")]
)
def test_a_classifier_is_opened_with_its_classes(folder: Folder, tmp_path: Path, name: str, auto: str) -> None:
    names, kind = ("cat", "dog", "eel"), "image" if name == "vit" else "audio"
    shape = (3, 32, 32) if name == "vit" else (1600,)
    rows, spec = torch.randn(6, *shape), InputSpec("array", shape)
    classes = Dataset.from_arrays("toy", {kind: rows}, [*names, *names], input_specs={kind: spec})
    source = NetworkConfig(model=f"transformers:{folder(name)}")
    built = build(source.model, {}, (kind,), None, "float32", member="it", dataset=classes, student=True)
    network = Network(built.network.module.eval(), (kind,), built.network.taps)
    save_student(tmp_path / "student", network, source, classes, "card")
    student, model = load_student(tmp_path / "student"), opened(tmp_path / "student", auto)
    assert model.config.id2label == dict(enumerate(names))
    body = network.module.body
    features = rows if body.frontend is None else body.frontend(rows, None)
    with torch.no_grad():
        assert torch.equal(student.logits({kind: rows}), model(features).logits)
    assert not (tmp_path / "student" / "head.safetensors").exists()


@pytest.mark.parametrize("name", ["whisper", "clip"])
def test_a_part_of_a_model_stays_in_the_other_format(folder: Folder, tmp_path: Path, name: str) -> None:
    # No Auto class of transformers builds an encoder or a tower alone.
    kind, shape = ("audio", (32_000,)) if name == "whisper" else ("image", (3, 32, 32))
    rows, spec = torch.randn(4, *shape), InputSpec("array", shape)
    classes = Dataset.from_arrays("toy", {kind: rows}, ["a", "b"] * 2, input_specs={kind: spec})
    source = NetworkConfig(model=f"transformers:{folder(name)}")
    built = build(source.model, {}, (kind,), None, "float32", member="it", dataset=classes, student=True)
    network = Network(built.network.module.eval(), (kind,), built.network.taps)
    assert plain_model(network, classes.classes) is None
    save_student(tmp_path / "student", network, source, classes, "card")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["format"] == FORMAT
    found = load_student(tmp_path / "student").logits({kind: rows})
    assert torch.equal(found, network(Batch({kind: rows}, torch.arange(4))).logits)


def test_a_folder_of_the_former_format_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = layers(load_student(student_folder(tmp_path / "new")).network)
    monkeypatch.setattr("crossdistill.student.plain_model", lambda *_: None)
    former = student_folder(tmp_path / "old")
    assert not (former / "crossdistill.json").exists()
    found = layers(load_student(former).network)
    assert all(torch.equal(found[tap], value) for tap, value in wanted.items())


def _edited(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))


def _without_seal(folder: Path) -> None:
    (folder / "crossdistill.json").unlink()


def _former_number(folder: Path) -> None:
    record = json.loads((folder / "crossdistill.json").read_text())
    (folder / "crossdistill.json").write_text(sealed({**record, "format": FORMAT}))


def _of_another(folder: Path) -> None:
    other = student_folder(folder.parent / "other", 1)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")


def _with_head(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "head.safetensors")


def _wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 300}))
    record = json.loads((folder / "crossdistill.json").read_text())
    record["files"]["config.json"] = file_hash(folder / "config.json")
    (folder / "crossdistill.json").write_text(sealed(record))


@pytest.mark.parametrize(
    ("harm", "kind", "facts"),
    [
        (_edited, DataError, ["config.json"]),
        (_without_seal, RunError, ["crossdistill.json"]),
        (_former_number, RunError, ["crossdistill.json", f"format {PLAIN_FORMAT}"]),
        (_of_another, DataError, ["model.safetensors"]),
        (_with_head, DataError, ["head.safetensors"]),
        (_wider, ShapeError, [300, 256]),
    ],
)
def test_a_folder_that_is_not_as_written_is_refused(
    tmp_path: Path, harm: Any, kind: type[Exception], facts: list[object]
) -> None:
    folder = student_folder(tmp_path / "student")
    harm(folder)
    with raises(kind, *facts):
        load_student(folder)


def test_students_are_merged_into_a_folder_that_transformers_opens(tmp_path: Path) -> None:
    folders = [student_folder(tmp_path / str(seed) / "student", seed) for seed in (0, 1)]
    merged = merge_folders([folders[0].parent, folders[1]], [0.75, 0.25], tmp_path / "merged")
    first, second, found = (opened(folder).state_dict() for folder in (*folders, merged))
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name])
    model, network = opened(merged), load_student(merged).network
    with torch.no_grad():
        assert torch.equal(layers(network)["layer2"], model(SOUNDS).last_hidden_state)
    assert "0.75" in (merged / "README.md").read_text()
    # A plain folder of transformers merges with a student: their weights have the same names.
    opened(folders[1]).save_pretrained(tmp_path / "plain")
    other = merge_folders([folders[0], tmp_path / "plain"], [0.75, 0.25], tmp_path / "other")
    assert all(torch.equal(value, found[name]) for name, value in opened(other).state_dict().items())
    with torch.no_grad():
        assert torch.equal(layers(load_student(other).network)["layer2"], model(SOUNDS).last_hidden_state)


def test_networks_that_compute_otherwise_are_not_merged(tmp_path: Path) -> None:
    folder, heads = student_folder(tmp_path / "one"), tmp_path / "heads"
    opened(folder).save_pretrained(heads)
    config = json.loads((heads / "config.json").read_text())
    (heads / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    for others in ({"parents": [folder, heads]}, {"parents": [folder, folder], "base": heads, "method": "task"}):
        with raises(SettingError, "num_attention_heads", 1, 4):
            merge_folders(others.pop("parents"), [0.5, 0.5], tmp_path / "merged", **others)
    assert not (tmp_path / "merged").exists()


def test_heads_are_merged_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = SMALL.build(0).module
        module.head = torch.nn.Linear(64, 2)
        network = Network(module.eval(), ("audio",), module.taps)
        folders.append(tmp_path / str(seed))
        save_student(folders[-1], network, SMALL, data(("a", "b")), "card")
    merged = merge_folders(folders, [0.5, 0.5], tmp_path / "merged")
    heads = [load_student(folder).network.module.head.weight for folder in (*folders, merged)]
    torch.testing.assert_close(heads[2], (heads[0] + heads[1]) / 2)
    assert not torch.equal(heads[0], heads[1])
    opened(merged)


def test_probes_read_the_blocks_of_a_student(tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "run" / "student")
    for name in (folder, folder.parent):
        frozen = open_frozen(str(name))
        assert (frozen.layers, frozen.rate) == (("layer1", "layer2"), 16_000)
        torch.testing.assert_close(layers(frozen.network), layers(load_student(folder).network))


@pytest.mark.parametrize("name", ["ast", "vit"])
def test_a_new_last_layer_takes_the_place_of_the_old_one(tmp_path: Path, name: str) -> None:
    from small_models import MODELS

    # AST's is inside of another module; ViT has other layers of as many outputs as its 32 classes.
    options: dict[str, Any] = {} if name == "ast" else {"classes": [str(one) for one in range(32)]}
    kind, shape = ("audio", (1600,)) if name == "ast" else ("image", (3, 32, 32))
    MODELS[name](tmp_path / name, **options)
    rows = torch.randn(6, *shape)
    specs = {kind: InputSpec("array", shape)}
    classes = Dataset.from_arrays("toy", {kind: rows}, ["cat", "dog", "eel"] * 2, input_specs=specs)
    built = build(
        f"transformers:{tmp_path / name}", {}, (kind,), "head", "float32", member="it", dataset=classes, student=False
    )
    (layer,) = built.network.module.trainable_last()
    assert layer.weight.shape == (3, 32)
    assert [one for one in built.network.parameters() if one.requires_grad] == [layer.weight, layer.bias]
    result = built.network.module.eval()(rows)
    assert torch.equal(result["logits"], layer(result["embedding"]))
