"""Zero-shot teachers against the models' own logits, and their ensembles against loops over templates."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises, states
from named import made

from crossdistill import Batch, Dataset, InputSpec
from crossdistill.backends import transformers
from crossdistill.backends.prompts import TEMPLATES, ZeroShot
from crossdistill.backends.text_head import in_passes
from crossdistill.backends.transformers_text import canonical, tokeniser
from crossdistill.data.rendered import rendered
from crossdistill.data.tokens import read_tokenizer
from crossdistill.errors import SettingError
from crossdistill.recipe import NetworkConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Folder = Callable[[str], Path]
CLASSES = ("zero", "one", "two")
OWN = ("a photo of a {}", "photo {}", "{} digit of a photo")
MODELS = ("clip", "siglip", "siglip2")


@pytest.fixture(scope="module")
def words() -> Dataset:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (12, 3, 32, 32), generator=generator) / 255
    spec = InputSpec("image", (3, 32, 32))
    return Dataset.from_arrays("words", {"image": pictures}, CLASSES * 4, input_specs={"image": spec})


def outputs(built: Any, data: Dataset) -> Any:
    with torch.no_grad():
        return built.network.eval()(whole(built, data))


def whole(built: Any, data: Dataset) -> Batch:
    return rendered(data, built.network.renderings, "it").batch(torch.arange(5))


def theirs(folder: Path, texts: list[str], batch: Batch) -> Any:
    """The library's own pass over pictures and texts, tokenised by its own class."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    siglip = "siglip" in model.config.model_type
    tokens = tokenizer(
        texts,
        padding="max_length" if siglip else True,
        max_length=model.config.text_config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    given = {"input_ids": tokens["input_ids"]}
    if not siglip:
        given["attention_mask"] = tokens["attention_mask"]
    with torch.no_grad():
        return model(**given, **pictures(folder, batch, model.config.model_type)), model


def pictures(folder: Path, batch: Batch, kind: str) -> Any:
    """The arguments for pictures; those of SigLIP 2 from the library's own processor."""
    if kind != "siglip2":
        return {"pixel_values": torch.as_tensor(batch.inputs["image@big"])}
    pytest.importorskip("PIL", reason="the extra `image` is not installed")
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    values = (torch.as_tensor(batch.inputs["image"]) * 255).round().byte()
    return Siglip2ImageProcessorPil.from_pretrained(folder)(list(values), return_tensors="pt")


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_library(folder: Folder, words: Dataset, name: str) -> None:
    built = made(folder(name), words, options={"templates": ["a photo of a {}"]})
    found, batch = outputs(built, words), whole(built, words)
    wanted, model = theirs(folder(name), [f"a photo of a {one}" for one in words.classes], batch)
    torch.testing.assert_close(found.logits, wanted.logits_per_image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.embedding, wanted.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.embedding.norm(dim=1), torch.ones(5))
    assert not any(one.requires_grad for one in built.network.parameters())
    states(built.notes[0], "zero-shot", f"{model.logit_scale.exp().item():.4g}")
    assert ("sigmoid" in built.notes[0]) == (name != "clip")


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("ensemble", ["embedding", "logit", "probability"])
def test_ensembles_are_loops_over_templates(folder: Folder, words: Dataset, name: str, ensemble: str) -> None:
    built = made(folder(name), words, options={"templates": OWN, "ensemble": ensemble})
    found, batch = outputs(built, words).logits, whole(built, words)
    each = []
    for template in OWN:
        given, model = theirs(folder(name), [template.replace("{}", one) for one in words.classes], batch)
        each.append(given)
    if ensemble == "embedding":
        scale, bias = model.logit_scale.exp(), getattr(model, "logit_bias", torch.zeros(1))
        for row, number in ((row, number) for row in range(5) for number in range(3)):
            text = sum(one.text_embeds[number] for one in each) / len(OWN)
            cosine = (each[0].image_embeds[row] * text).sum() / text.norm()
            torch.testing.assert_close(
                found[row, number], (cosine * scale + bias).squeeze().detach(), atol=1e-4, rtol=1e-4
            )
        return
    logits = [one.logits_per_image for one in each]
    if ensemble == "logit":
        torch.testing.assert_close(found, sum(logits) / len(OWN), atol=1e-4, rtol=1e-4)
    elif name == "clip":
        torch.testing.assert_close(
            found.softmax(1), sum(one.softmax(1) for one in logits) / len(OWN), atol=1e-5, rtol=1e-4
        )
    else:
        torch.testing.assert_close(
            found.sigmoid(), sum(one.sigmoid() for one in logits) / len(OWN), atol=1e-5, rtol=1e-4
        )


def test_the_scale_is_the_model_s_own_or_that_of_the_settings(folder: Folder, words: Dataset) -> None:
    own, one = made(folder("clip"), words), made(folder("clip"), words, options={"logit_scale": 1.0})
    torch.testing.assert_close(outputs(one, words).logits * 14.2857, outputs(own, words).logits, atol=1e-3, rtol=1e-3)
    assert outputs(one, words).logits.abs().max() <= 1
    siglip = made(folder("siglip"), words, options={"logit_scale": 1.0, "logit_bias": 0.5})
    assert (outputs(siglip, words).logits - 0.5).abs().max() <= 1
    assert f"{len(TEMPLATES)} templates" in own.notes[0]
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 12


def test_texts_are_encoded_once(folder: Folder, words: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    ours = transformers.text_side
    monkeypatch.setattr(transformers, "text_side", lambda *given: seen.append(1) or ours(*given))
    options = {"templates": ["this {}", "a {}"], "logit_scale": 7.0}
    one, other = made(folder("clip"), words, options=options), made(folder("clip"), words, options=options)
    made(folder("clip"), words, options={**options, "logit_scale": 8.0})
    assert len(seen) == 2
    assert torch.equal(one.network.module.head.weight, other.network.module.head.weight)
    torch.testing.assert_close(
        torch.cat([torch.arange(5)[:, None], torch.ones(5, 1)], 1),
        in_passes(lambda rows: torch.cat([torch.arange(5)[rows, None], torch.ones(5, 1)[rows]], 1), 5, 2**14),
    )


def test_half_precision_keeps_the_texts_exact(folder: Folder, words: Dataset) -> None:
    full, low = made(folder("clip"), words), made(folder("clip"), words, dtype="bfloat16")
    torch.testing.assert_close(low.network.module.head.weight, full.network.module.head.weight.data, atol=0, rtol=0)
    found, wanted = outputs(low, words), outputs(full, words)
    assert found.logits.dtype == found.embedding.dtype == torch.float32
    torch.testing.assert_close(found.logits, wanted.logits, atol=0.3, rtol=0.05)


def test_names_are_cleaned_and_get_articles() -> None:
    def texts(*names: str, **settings: Any) -> list[str]:
        return ZeroShot(templates=("An image of a {}.",), **settings).prompts(names)[0]

    assert texts("oak_tree", "aquarium_fish") == ["An image of an oak tree.", "An image of an aquarium fish."]
    assert texts("hourglass", "unicycle", "uncle", "European_fire", "one-wheeler", "umbrella") == [
        f"An image of {one}."
        for one in ("an hourglass", "a unicycle", "an uncle", "a European fire", "a one-wheeler", "an umbrella")
    ]
    assert texts("oak_tree", clean_names=False, articles=False) == ["An image of a oak_tree."]
    assert ZeroShot(templates=("the {}s",)).prompts(["apple"]) == [["the apples"]]
    assert canonical("  A photo, of: a Well-Known  Cat! ") == "a photo of a wellknown cat"


@pytest.mark.parametrize("side", [None, "right"])
def test_texts_are_tokens_as_the_library_s_classes_make_them(tmp_path: Path, side: str | None) -> None:
    from transformers import AutoTokenizer, CLIPTokenizer
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    texts = ["A Cat", "an old cat"]
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = {one: number for number, one in enumerate((*special, "▁", *"abcdefghijklmnopqrstuvwxyz"))}
    given = {} if side is None else {"padding_side": side, "model_input_names": ["input_ids"]}
    Siglip2Tokenizer(vocab=letters, merges=[], **given).save_pretrained(tmp_path / "siglip2")
    found = tokeniser(*files_of(tmp_path / "siglip2"), "siglip2", 12, 1)(texts)
    wanted = AutoTokenizer.from_pretrained(tmp_path / "siglip2")(texts, padding="max_length", max_length=12)
    assert found["input_ids"].tolist() == wanted["input_ids"]
    assert set(found) == {"input_ids"}
    pieces = ("<|startoftext|>", "<|endoftext|>", *"acdlnot", *(f"{one}</w>" for one in "acdlnot"))
    CLIPTokenizer(vocab={one: number for number, one in enumerate(pieces)}, merges=[]).save_pretrained(
        tmp_path / "clip"
    )
    found = tokeniser(*files_of(tmp_path / "clip"), "clip", 77, None)(texts)
    wanted = AutoTokenizer.from_pretrained(tmp_path / "clip")(texts, padding=True)
    assert {name: rows.tolist() for name, rows in found.items()} == dict(wanted)


def files_of(folder: Path) -> Any:
    return json.loads((folder / "tokenizer_config.json").read_text()), read_tokenizer(folder)


def test_words_are_matched_with_classes_by_name(tmp_path: Path) -> None:
    classes = ("n01", "n02", "n03")
    named = ZeroShot(class_names={"N-02": "red fox", "n01": "tench"})
    assert named.words(classes) == ("tench", "red fox", "n03")
    turned = ZeroShot(class_names=("Two", "zero", "one"))
    assert turned.words(CLASSES) == ("zero", "one", "Two")
    (tmp_path / "names.json").write_text(json.dumps({"n03": "shark"}))
    assert ZeroShot(class_names=tmp_path / "names.json").words(classes) == ("n01", "n02", "shark")
    with raises(SettingError, "n04", "n01"):
        ZeroShot(class_names={"n04": "cat"}).words(classes)
    with raises(SettingError, "four", 3, "class_names"):
        ZeroShot(class_names=("zero", "one", "four")).words(CLASSES)
    with raises(SettingError, "two", 2):
        ZeroShot(class_names=("zero", "one")).words(CLASSES)
    with raises(SettingError, "LABEL_0", "class_names"):
        ZeroShot(zero_shot=True).words(("LABEL_0", "LABEL_1"))


def test_templates_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# mine\na {} in fog\n\na {} at night\n")
    assert ZeroShot.model_validate({"templates": str(tmp_path / "own.txt")}).all_templates() == (
        "a {} in fog",
        "a {} at night",
    )
    (tmp_path / "own.json").write_text('["the {}"]')
    assert ZeroShot(templates=tmp_path / "own.json").all_templates() == ("the {}",)
    (tmp_path / "bad.txt").write_text("a fog\n")
    with raises(SettingError, "bad.txt", "a fog", "{}"):
        ZeroShot(templates=tmp_path / "bad.txt").all_templates()
    with raises(SettingError, "none.txt"):
        ZeroShot(templates=tmp_path / "none.txt").all_templates()


def test_a_teacher_that_trains_or_data_without_words_keep_it_an_encoder(
    folder: Folder, words: Dataset, digits: Dataset
) -> None:
    for built in (
        made(folder("clip"), words, "head"),
        made(folder("clip"), words, options={"zero_shot": False}),
        made(folder("clip"), words, student=True),
    ):
        assert "new last layer for 3" in built.notes[0]
    numbers = made(folder("clip"), digits)
    states(numbers.notes[0], "class_names", "new last layer for 10")
    # A zero-shot head can train as well.
    trained = made(folder("siglip"), words, "head", options={"ensemble": "probability"})
    moving = {name for name, one in trained.network.module.named_parameters() if one.requires_grad}
    assert moving == {"head.weight", "head.bias"}


def changed(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**config, **values}))


def test_bad_input_is_refused(folder: Folder, words: Dataset, tmp_path: Path) -> None:
    bare = shutil.copytree(folder("clip"), tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with raises(SettingError, "tokenizer.json", "zero_shot=false"):
        made(bare, words)
    coded = shutil.copytree(folder("clip"), tmp_path / "coded")
    changed(coded, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x.Y"}})
    with raises(SettingError, "x.Y", "never run"):
        made(coded, words)
    with raises(SettingError, "trust_remote_code", "never run"):
        made(folder("clip"), words, options={"trust_remote_code": True})
    with raises(SettingError, "vit", "templates", "CLIP"):
        made(folder("vit"), words, options={"templates": ["a {}"]})
    nameless = Dataset.from_arrays(
        "nameless",
        {"image": torch.rand(9, 3, 8, 8)},
        [f"LABEL_{n}" for n in range(3)] * 3,
        input_specs={"image": InputSpec("image", (3, 8, 8))},
    )
    with raises(SettingError, "LABEL_0", "class_names", "tune=head"):
        made(folder("clip"), nameless, options={"zero_shot": True})
    numbers = Dataset.from_arrays("numbers", {"image": torch.rand(20, 3, 8, 8)}, torch.rand(20, 1), task="regression")
    with raises(SettingError, "numbers", "tune=head"):
        made(folder("clip"), numbers, options={"zero_shot": True})


def test_several_labels_take_a_model_with_a_sigmoid(folder: Folder) -> None:
    spec = InputSpec("image", (3, 8, 8))
    labels = (torch.arange(60).view(20, 3) % 7 < 3).float()
    data = Dataset.from_arrays(
        "tags",
        {"image": torch.rand(20, 3, 8, 8)},
        labels,
        classes=CLASSES,
        task="multi-label",
        input_specs={"image": spec},
    )
    with raises(SettingError, "clip", "softmax", "tune=head"):
        made(folder("clip"), data, options={"zero_shot": True})
    assert outputs(made(folder("siglip"), data, options={"zero_shot": True}), data).logits.shape == (5, 3)
    assert "new last layer" in made(folder("siglip"), data).notes[0]


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"templates": ["a photo"]}, ["a photo", "{}"]),
        ({"prompt": "a photo"}, ["a photo", "{}"]),
        ({"templates": []}, ["templates"]),
        ({"ensemble": "logits"}, ["logits", "logit"]),
        ({"logit_scale": -1}, ["logit_scale", "0"]),
    ],
)
def test_bad_settings_are_refused_with_the_recipe(settings: dict[str, Any], facts: list[str]) -> None:
    with raises(ValueError, *facts):
        NetworkConfig.model_validate({"model": "transformers:some/clip", **settings})


def test_settings_stand_beside_the_model() -> None:
    config = NetworkConfig.model_validate({"model": "transformers:some/clip", "logit_scale": 1.0, "options": {"x": 1}})
    assert config.options == {"x": 1, "logit_scale": 1.0}
    with raises(ValueError, "templates", "open_clip:NAME"):
        NetworkConfig.model_validate({"model": "timm:resnet18", "templates": ["a {}"]})
