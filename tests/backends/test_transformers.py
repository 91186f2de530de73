import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import made

from crossdistill import Batch, CrossdistillError, Dataset, InputSpec, Network
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.processors import picture_rendering
from crossdistill.backends.saved import rebuilt
from crossdistill.backends.transformers import load
from crossdistill.data.rendered import rendered
from crossdistill.data.rendering import PictureRendering
from crossdistill.errors import SettingError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Folder = Callable[[str], Path]

INPUTS: dict[str, Any] = {
    "image": torch.randn(3, 3, 32, 32),
    "audio": torch.randn(3, 32000),
    "text": {"input_ids": torch.tensor([[2, 4, 5, 3]] * 3), "attention_mask": torch.ones(3, 4, dtype=torch.int64)},
}


def network_of(folder: Path, **options: Any) -> Network:
    body = load(str(folder), options).body
    module = Pretrained(body)
    return Network(module.eval(), (body.kind,), module.taps)


@pytest.mark.parametrize(
    ("name", "kind", "classes", "layers", "width"),
    [
        ("vit", "image", 10, 3, 32),
        ("dinov2", "image", None, 3, 32),
        ("resnet", "image", 10, 4, 20),
        ("swin", "image", 10, 2, 16),
        ("clip", "image", None, 3, 24),
        ("bert", "text", None, 3, 32),
        ("wav2vec2", "audio", None, 3, 32),
        ("whisper", "audio", None, 2, 32),
        ("ast", "audio", 10, 3, 32),
    ],
)
def test_a_folder_has_an_embedding_numbered_layers_and_a_key(
    folder: Folder, name: str, kind: str, classes: int | None, layers: int, width: int
) -> None:
    network = network_of(folder(name))
    spec = network.probe(Batch({kind: INPUTS[kind]}, torch.arange(3)))
    assert spec.embedding == (width,)
    assert spec.logits == (None if classes is None else (classes,))
    assert list(spec.features) == [f"layer{number}" for number in range(1, layers + 1)]
    assert not network.unkeyed()
    assert not network.has_own_code()


def test_logits_and_layers_are_those_of_the_library(folder: Folder) -> None:
    from transformers import ViTForImageClassification

    network, theirs = network_of(folder("vit")), ViTForImageClassification.from_pretrained(folder("vit")).eval()
    batch = Batch({"image": INPUTS["image"]}, torch.arange(3))
    with torch.no_grad():
        wanted = theirs(pixel_values=INPUTS["image"], output_hidden_states=True)
        from crossdistill.outputs import Signal

        found = network(batch, {Signal.LOGITS, Signal.feature("layer2")})
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.features["layer2"], wanted.hidden_states[2])
    # The classifier reads the embedding.
    torch.testing.assert_close(theirs.classifier(found.embedding), wanted.logits)


def test_a_layer_can_be_rewritten(folder: Folder) -> None:
    network = network_of(folder("swin"))
    batch = Batch({"image": INPUTS["image"]}, torch.arange(3))
    network.probe(batch)
    before = network(batch).logits
    after = network.edited(batch, {"layer1": lambda value: value * 0}).logits
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)


def test_spectrograms_are_those_of_the_library(folder: Folder) -> None:
    from transformers import AutoFeatureExtractor, WhisperModel

    waves = [torch.randn(samples) * 0.1 for samples in (32000, 8000)]
    theirs = AutoFeatureExtractor.from_pretrained(folder("whisper"))
    wanted = theirs([wave.numpy() for wave in waves], sampling_rate=16000, return_tensors="pt").input_features
    network = network_of(folder("whisper"))
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    found = network.module.get_submodule("body.frontend")(padded)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    model = WhisperModel.from_pretrained(folder("whisper")).eval()
    with torch.no_grad():
        embedding = network(Batch({"audio": padded}, torch.arange(2))).embedding
        states = model.get_encoder()(wanted).last_hidden_state
    torch.testing.assert_close(embedding, states.mean(1), atol=1e-3, rtol=1e-3)
    kaldi = AutoFeatureExtractor.from_pretrained(folder("ast"))
    filters = network_of(folder("ast")).module.get_submodule("body.frontend")
    bank = filters(padded, torch.tensor([32000, 8000]))
    for row, wave in enumerate(waves):
        own = kaldi(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values[0]
        torch.testing.assert_close(bank[row], own, atol=2e-3, rtol=1e-3)


def test_both_sides_of_clip(folder: Folder) -> None:
    from transformers import CLIPModel

    theirs = CLIPModel.from_pretrained(folder("clip")).eval()
    text = network_of(folder("clip"), modality="text")
    with torch.no_grad():
        wanted = theirs.get_text_features(**INPUTS["text"])
        found = text(Batch({"text": INPUTS["text"]}, torch.arange(3))).embedding
    torch.testing.assert_close(found, getattr(wanted, "pooler_output", wanted))
    assert sum(p.numel() for p in text.parameters()) < sum(p.numel() for p in theirs.parameters()) * 0.7


def test_clip_compares_pictures_with_the_names_of_the_classes(folder: Folder) -> None:
    from tokenizers import Tokenizer
    from transformers import CLIPModel

    classes = ["zero", "one", "two"]
    data = Dataset.from_arrays(
        "words",
        {"image": torch.rand(12, 3, 32, 32)},
        classes * 4,
        input_specs={"image": InputSpec("image", (3, 32, 32))},
    )
    network = made(folder("clip"), data, options={"prompt": "a photo of a {}"}).network
    assert not any(one.requires_grad for one in network.parameters())
    data = rendered(data, network.renderings, "it")
    batch = data.batch(torch.arange(4))
    theirs = CLIPModel.from_pretrained(folder("clip")).eval()
    words = Tokenizer.from_file(str(folder("clip") / "tokenizer.json"))
    ids = torch.tensor([words.encode(f"a photo of a {name}").ids for name in data.classes])
    with torch.no_grad():
        pixels = torch.as_tensor(batch.inputs["image@big"])
        wanted = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits_per_image
        found = network.eval()(batch).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(SettingError, match="prompt"):
        made(folder("vit"), data, options={"prompt": "a {}"})


def test_bright_pictures_are_refused(folder: Folder) -> None:
    spec = InputSpec("image", (3, 8, 8))
    data = Dataset.from_arrays(
        "bright", {"image": torch.rand(9, 3, 8, 8) * 255}, [0, 1, 2] * 3, input_specs={"image": spec}
    )
    with pytest.raises(CrossdistillError, match="divide them by 255"):
        rendered(data, made(folder("dinov2"), data).network.renderings, "it")


@pytest.mark.parametrize("size", [(48, 48), (20, 20)])
def test_the_rendering_is_pillow_s_resizing(folder: Folder, size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rendering = load(str(folder("vit")), {}).rendering
    assert rendering is not None
    found = rendering.apply(torch.from_numpy(picture).permute(2, 0, 1)[None])
    resized = np.asarray(image.fromarray(picture).resize((32, 32), 2), dtype=np.float32) / 255
    wanted = (resized - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(found[0].permute(1, 2, 0), wanted, atol=2.1 / 255)


def test_a_processor_that_resizes_both_sides_and_cuts_the_middle_is_rendered_so() -> None:
    config = {"image_processor_type": "DeiTImageProcessor", "size": {"height": 24, "width": 24}, "crop_size": 16}
    rendering = picture_rendering({**config, "do_center_crop": True, "do_normalize": False}, "it")
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    found = rendering.apply(torch.from_numpy(picture).permute(2, 0, 1)[None])
    wanted = np.asarray(image.fromarray(picture).resize((24, 24), 2), dtype=np.float32)[4:20, 4:20] / 255
    np.testing.assert_allclose(found[0].permute(1, 2, 0), wanted, atol=1.1 / 255)
    again = PictureRendering.model_validate(rendering.model_dump())
    assert again.both_sides
    assert "both_sides" not in PictureRendering(size=(16, 16), shortest=24).model_dump()


def test_pictures_in_memory_are_rendered_from_their_views(digits: Dataset) -> None:
    from crossdistill.data.augmentation import Variation, Variations

    rendering = PictureRendering(size=(16, 16), channels=3, mean=(0.5,), deviation=(0.5,))
    varied = replace(digits, augmentation=Variations(inputs={"image": Variation(noise=0.3)}, views=2))
    data = rendered(varied, {"image@clip": rendering}, "it")
    rows, view = torch.arange(4), torch.tensor([1, 2, 0, 1])
    both = data.batch(rows, view=view)
    alone = data.batch(rows, only=("image@clip",), view=view)
    for name, value in alone.inputs.items():
        assert name == "image@clip"
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(both.inputs[name]))
    image = both.inputs["image"]
    assert isinstance(image, torch.Tensor)
    assert torch.equal(torch.as_tensor(both.inputs["image@clip"]), rendering.apply(image.clamp(0, 1) * 255))
    plain = data.batch(rows).inputs["image@clip"]
    assert torch.equal(torch.as_tensor(plain)[2], torch.as_tensor(both.inputs["image@clip"])[2])


def test_a_changed_student_s_config_names_no_code(folder: Folder) -> None:
    body = network_of(folder("vit")).module.get_submodule("body").description()
    body["config"]["attn_implementation"] = "somebody/kernel"
    with pytest.raises(SettingError, match="somebody/kernel"):
        rebuilt("transformers", {"classes": 10, "body": body}, ("image",))
    with pytest.raises(SettingError, match="extra"):
        rebuilt("transformers", {"classes": 10, "body": {}, "extra": 1}, ("image",))


def _without(*names: str) -> Callable[[Path], None]:
    return lambda path: [(path / name).unlink() for name in names] and None


def _changed(file: str, **values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**config, **values}))

    return change


def _pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("vit", _without("config.json"), ["config.json"]),
        ("vit", _without("model.safetensors"), ["no weights", "model.safetensors"]),
        ("vit", _pickled, ["pytorch_model.bin", "pickled"]),
        ("vit", _without("preprocessor_config.json"), ["preprocessor_config.json", "options.rendering"]),
        ("bert", _without("tokenizer.json"), ["tokenizer.json"]),
        ("vit", _changed("config.json", model_type="mine", auto_map={"AutoModel": "x.Y"}), ["mine", "never run"]),
        ("vit", _changed("config.json", model_type="vitt"), ["vitt", "'vit'"]),
        ("vit", _changed("config.json", hidden_size=48), ["other shapes"]),
        ("vit", _changed("preprocessor_config.json", do_pad=True), ["do_pad", "options.rendering"]),
        ("vit", _changed("preprocessor_config.json", resample=1), ["interpolation 1"]),
        ("vit", _changed("preprocessor_config.json", size={"longest_edge": 32}), ["longest_edge"]),
    ],
)  # fmt: skip
def test_a_faulty_folder_is_refused_in_one_sentence(
    folder: Folder, tmp_path: Path, name: str, change: Callable[[Path], None], facts: list[str]
) -> None:
    path = shutil.copytree(folder(name), tmp_path / name)
    change(path)
    with pytest.raises(CrossdistillError) as caught:
        load(str(path), {})
    for fact in (*facts, name):
        assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_faults(folder: Folder, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SettingError, match="no such folder"):
        load("/nowhere/at/all", {})
    with pytest.raises(SettingError, match="offline"):
        load("somebody/some-model", {})
    with pytest.raises(SettingError, match=r"renderng.*rendering"):
        load(str(folder("vit")), {"renderng": {}})
    with pytest.raises(SettingError, match=r"last-9.*3 layers"):
        made(folder("vit"), digits, "last-9")
    with pytest.raises(CrossdistillError, match="in memory"):
        rendered(digits, made(folder("bert"), digits, reads=("image",)).network.renderings, "it")
