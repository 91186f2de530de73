import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard

from crossdistill import Batch, CrossdistillError, Dataset, InputSpec, Network, Recipe, Stage, load_student, run
from crossdistill.backends.names import build
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.saved import rebuilt
from crossdistill.backends.transformers import load
from crossdistill.data.rendered import rendered
from crossdistill.errors import SettingError
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes import make
from crossdistill.training.evaluation import evaluate_folder

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


def test_pictures_in_memory_are_rendered_from_their_views(digits: Dataset) -> None:
    from crossdistill.data.augmentation import Variation, Variations
    from crossdistill.data.rendering import PictureRendering

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


def recipe(digits: Dataset, teacher: Any, **settings: Any) -> Recipe:
    return Recipe(
        data=digits,
        student=NetworkConfig(model="small-image"),
        teachers={"big": teacher},
        stages=(
            Stage(method="supervised", learner="big", name="supervised-big", epochs=1, batch_size=16),
            Stage(method="kd", teachers=("big",), epochs=3, batch_size=16),
        ),
        **settings,
    )


def test_a_folder_teaches(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    display = Heard()
    run(recipe(digits, f"transformers:{folder('vit')}"), tmp_path / "out", display=display)
    said = "\n".join(display.lines)
    assert "'big': its 10 classes are those of the data; it is frozen" in said
    assert "supervised-big: left out" in said
    assert "kd: big logits: banked" in said
    assert "teachers on the validation split: big accuracy" in said
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert "apache-2.0" in card


def test_a_teacher_at_chance_is_refused_where_that_is_wanted(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    teacher = f"transformers:{folder('vit')}"
    first = Stage(method="supervised", epochs=1, batch_size=16)
    stages = (first, Stage(method="kd", epochs=1, batch_size=16))
    plain = Recipe(data=digits, student=NetworkConfig(model="small-image"), teachers={"big": teacher}, stages=stages)
    display = Heard()
    with pytest.raises(SettingError, match=r"'big'.*chance.*tune=head"):
        run(plain, tmp_path / "out", display=display, strict=True)
    # Before anything trained.
    assert not (tmp_path / "out" / "stages").is_dir()
    run(plain, tmp_path / "warned", display=display)
    said = [line for line in display.lines if "teachers on the validation split" in line]
    assert said[0].startswith("kd: teachers on the validation split: big accuracy")


def test_without_labels_entropy_and_agreement_are_shown(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    targets = digits.targets.clone()
    targets[digits.splits["validation"]] = -100
    data = replace(digits, targets=targets, sample="")
    teacher = f"transformers:{folder('vit')}"
    plain = Recipe(
        data=data,
        student=NetworkConfig(model="small-image"),
        teachers={"one": teacher, "two": teacher, "three": f"transformers:{folder('resnet')}"},
        stages=(Stage(method="kd", epochs=1, batch_size=16, select="last"),),
    )
    display = Heard()
    run(plain, tmp_path / "out", display=display)
    (line,) = [line for line in display.lines if "which has no labels" in line]
    assert "one and two agree on 1.000 of 18 rows" in line
    assert "three entropy" in line
    with pytest.raises(SettingError, match="as uncertain as guesses"):
        run(plain, tmp_path / "strict", display=display, strict=True)


def test_a_folder_is_a_student_that_loads_without_it(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    place = shutil.copytree(folder("vit"), tmp_path / "vit")
    small = NetworkConfig.model_validate({"model": f"transformers:{place}", "tune": "last-1"})
    stages = (Stage(method="supervised", epochs=1, batch_size=16),)
    display = Heard()
    run(Recipe(data=digits, student=small, stages=stages), tmp_path / "out", display=display)
    recipe = Recipe(data=digits, student=small, stages=stages)
    shutil.rmtree(place)
    student = load_student(tmp_path / "out")
    assert student.network.reads == ("image@student",)
    assert str(tmp_path) not in (tmp_path / "out" / "student" / "config.json").read_text()
    found = evaluate_folder(tmp_path / "out", recipe, "test")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["value"] == pytest.approx(next(row["mean"] for row in results if row["method"] == "supervised"))


def test_a_changed_student_s_config_names_no_code(folder: Folder) -> None:
    body = network_of(folder("vit")).module.get_submodule("body").description()
    body["config"]["attn_implementation"] = "somebody/kernel"
    with pytest.raises(SettingError, match="somebody/kernel"):
        rebuilt("transformers", {"classes": 10, "body": body}, ("image",))
    with pytest.raises(SettingError, match="extra"):
        rebuilt("transformers", {"classes": 10, "body": {}, "extra": 1}, ("image",))


def made(path: Path, digits: Dataset, how: str | None = None, *, student: bool = False, **rest: Any) -> Any:
    options = rest.pop("options", {})
    return build(
        f"transformers:{path}",
        options,
        rest.pop("reads", None),
        how,
        rest.pop("dtype", "float32"),
        member="big",
        dataset=digits,
        student=student,
    )


def test_classes_in_another_order_are_permuted(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder("vit"), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["id2label"] = {str(number): str(9 - number) for number in range(10)}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    right, turned = made(folder("vit"), digits), made(tmp_path / "vit", digits)
    assert "are put into the data's order, by name" in turned.notes[0]
    batch = Batch({"image@big": INPUTS["image"]}, torch.arange(3))
    with torch.no_grad():
        one, other = right.network.eval()(batch).logits, turned.network.eval()(batch).logits
    assert torch.equal(one.flip(1), other)


def test_other_classes_leave_a_frozen_teacher_without_logits(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder("vit"), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["id2label"] = {str(number): f"bird {number}" for number in range(10)}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    frozen = made(tmp_path / "vit", digits, "frozen")
    assert "used without logits" in frozen.notes[0]
    assert "not those of the data" in frozen.notes[0]
    headed = made(tmp_path / "vit", digits)
    assert "new last layer for 10" in headed.notes[0]
    moving = {name for name, one in headed.network.module.named_parameters() if one.requires_grad}
    assert moving == {"body.model.classifier.weight", "body.model.classifier.bias"}


@pytest.mark.parametrize(
    ("how", "blocks"), [("all", {0, 1, 2}), ("last-2", {1, 2}), ("head", set()), ("frozen", set())]
)
def test_what_trains(folder: Folder, digits: Dataset, how: str, blocks: set[int]) -> None:
    network = made(folder("dinov2"), digits, how).network
    moving = [name for name, one in network.module.named_parameters() if one.requires_grad]
    assert {number for number in range(3) if any(f"layer.{number}." in name for name in moving)} == blocks
    assert ("head.weight" in moving) == (how != "frozen")
    assert any("cls_token" in name for name in moving) == (how == "all")


def test_statistics_of_what_does_not_train_stay(folder: Folder, digits: Dataset) -> None:
    module = made(folder("resnet"), digits, "last-1").network.module.train()
    norms = {name: one.training for name, one in module.named_modules() if isinstance(one, torch.nn.BatchNorm2d)}
    assert {name for name, training in norms.items() if training} == {name for name in norms if ".stages.3." in name}
    assert not made(folder("resnet"), digits, "head").network.module.train().get_submodule("body.model.resnet").training


def test_a_frozen_teacher_in_bfloat16(folder: Folder, digits: Dataset) -> None:
    network = made(folder("vit"), digits, dtype="bfloat16").network
    data = rendered(digits, network.renderings, "it")
    spec = network.probe(data.example())
    outputs = network(data.example())
    assert {one.dtype for one in network.parameters()} == {torch.bfloat16}
    assert outputs.logits is not None
    assert outputs.logits.dtype == torch.float32
    assert spec.logits == (10,)
    with pytest.raises(SettingError, match="dtype is bfloat16"):
        made(folder("vit"), digits, "all", dtype="bfloat16")


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


def test_names_in_a_recipe(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"timn.*timm"):
        NetworkConfig.model_validate("timn:resnet18")
    with pytest.raises(ValueError, match="small-imag"):
        NetworkConfig.model_validate("small-imag")
    with pytest.raises(ValueError, match="last-N"):
        NetworkConfig(model="small-image", tune="most")
    assert NetworkConfig.model_validate("small-image") == NetworkConfig(model="small-image")
    assert NetworkConfig(model="small-image").model_dump() == {
        "model": "small-image", "options": {}, "reads": None, "weights": None,
    }  # fmt: skip


def test_settings_add_a_teacher_and_name_the_student(folder: Folder) -> None:
    clip, small = f"transformers:{folder('clip')}", f"transformers:{folder('vit')}"
    found = make("av-digits/kd", [f"teachers.clip={clip}", f"student={small}", "student.tune=last-1"])
    assert [stage.name for stage in found.stages] == ["supervised-mm", "supervised-clip", "kd"]
    assert found.stages[2].teachers == ("mm", "clip")
    assert found.stages[1].epochs == found.stages[0].epochs
    assert isinstance(found.student, NetworkConfig)
    assert (found.student.model, found.student.reads, found.student.tune) == (small, ("image",), "last-1")
    assert found.kind is None
    assert found.learner == "image"
    assert Recipe.model_validate(found.model_dump(mode="json")) == found
