"""Tiny-ImageNet and ImageNet from small folders of the layouts that are in use."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises
from PIL import Image
from torch import Tensor

from crossdistill import run
from crossdistill.data.file_source import FileSource
from crossdistill.data.sets.imagenet import ImagenetConfig
from crossdistill.data.sets.synset_folders import class_names
from crossdistill.data.sets.tiny_imagenet import TinyImagenetConfig
from crossdistill.errors import DataError
from crossdistill.recipes import make

SYNSETS = ("n01440764", "n02012849", "n03126707", "n09999999")
WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
    "n09999999": "goldfish, Carassius auratus",
}
PER_CLASS, TESTS = 10, 8


def save(path: Path, value: int, side: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*side, 3), value, np.uint8)).save(path, quality=95)


def words(separator: str) -> str:
    return "".join(f"{synset}{separator}{text}\n" for synset, text in WORDS.items())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The layout of tiny-imagenet-200; val_10 comes after val_9."""
    folder = tmp_path / "tiny-imagenet-200"
    for number, synset in enumerate(SYNSETS):
        for row in range(PER_CLASS):
            save(folder / "train" / synset / "images" / f"{synset}_{row}.JPEG", 50 * number + row)
        (folder / "train" / synset / f"{synset}_boxes.txt").write_text("")
    lines = []
    for row in range(TESTS + 3):
        save(folder / "val" / "images" / f"val_{row}.JPEG", 50 * (row % 4) + row)
        lines.append(f"val_{row}.JPEG\t{SYNSETS[row % 4]}\t0\t0\t9\t9")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)))
    (folder / "words.txt").write_text(words("\t"))
    save(folder / "test" / "images" / "test_0.JPEG", 0)
    return tmp_path


def values_of(data: object, rows: list[int]) -> Tensor:
    read = data.batch(torch.tensor(rows)).inputs["image"]  # type: ignore[attr-defined]
    assert isinstance(read, Tensor)
    return read


def test_tiny_imagenet(tiny: Path) -> None:
    data = TinyImagenetConfig(root=tiny, validation=0.2, workers=0).load()
    assert data.classes == ("tench", "n02012849", "n03126707", "goldfish"), "crane is two of them"
    assert len(data) == 4 * PER_CLASS + TESTS + 3
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 32, "validation": 8, "test": 11}
    assert torch.bincount(data.targets[data.splits["validation"]]).tolist() == [2] * 4
    assert data.targets[data.splits["test"]].tolist() == [row % 4 for row in range(11)], "in the order of their numbers"
    source = data.inputs["image"]
    assert isinstance(source, FileSource)
    assert source.name_of(10).endswith("train/n02012849/images/n02012849_0.JPEG")
    assert source.name_of(50).endswith("val/images/val_10.JPEG")
    mean, deviation = torch.tensor([0.4802, 0.4481, 0.3975]), torch.tensor([0.2302, 0.2265, 0.2262])
    wanted = ((50 / 255 - mean) / deviation)[:, None, None].expand(3, 64, 64)
    assert torch.allclose(values_of(data, [10])[0], wanted, atol=0.03)
    assert TinyImagenetConfig(root=tiny / "tiny-imagenet-200", validation=0.2).load().fingerprint == data.fingerprint


def test_a_few_rows_are_of_all_classes(tiny: Path) -> None:
    data = TinyImagenetConfig(root=tiny, rows=20, validation=0.4).load()
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 12, "validation": 8, "test": 11}
    assert torch.bincount(data.targets[:20]).tolist() == [5] * 4


def test_val_in_folders_of_synsets(tiny: Path) -> None:
    val = tiny / "tiny-imagenet-200" / "val"
    by_list = TinyImagenetConfig(root=tiny).load()
    for row in range(TESTS + 3):
        below = val / SYNSETS[row % 4]
        below.mkdir(exist_ok=True)
        (val / "images" / f"val_{row}.JPEG").rename(below / f"val_{row}.JPEG")
    (val / "val_annotations.txt").unlink()
    by_folder = TinyImagenetConfig(root=tiny).load()
    test = by_folder.targets[by_folder.splits["test"]]
    assert torch.bincount(test).tolist() == torch.bincount(by_list.targets[by_list.splits["test"]]).tolist()


def imagenet(root: Path, below: str, texts: Mapping[str, str], flat: bool = True) -> Path:
    for number, synset in enumerate(SYNSETS):
        for row in range(6):
            save(root / below / "train" / synset / f"{synset}_{row}.JPEG", 40 * number, (300, 280))
    for row in range(TESTS):
        inner = "" if flat else SYNSETS[row % 4]
        save(root / below / "val" / inner / f"ILSVRC2012_val_{row + 1:08}.JPEG", 40 * (row % 4), (280, 300))
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


NAMES = [f"ILSVRC2012_val_{row + 1:08}" for row in range(TESTS)]
OF_NAMES = [SYNSETS[row % 4] for row in range(TESTS)]
KAGGLE = "ImageId,PredictionString\n" + "\n".join(
    f"{name},{synset} 1 2 3 4 {synset} 5 6 7 8"
    for name, synset in sorted(zip(NAMES, OF_NAMES, strict=True), reverse=True)
)


@pytest.mark.parametrize(
    ("below", "texts"),
    [
        ("ILSVRC/Data/CLS-LOC", {"LOC_val_solution.csv": KAGGLE, "LOC_synset_mapping.txt": words(" ")}),
        ("imagenet", {"imagenet/ILSVRC2012_validation_synset_labels.txt": "\n".join(OF_NAMES)}),
        ("", {"val.txt": "".join(f"{name}.JPEG {row % 4}\n" for row, name in enumerate(NAMES))}),
        ("", {"val/val_annotations.txt": "".join(f"{n}.JPEG\t{s}\n" for n, s in zip(NAMES, OF_NAMES, strict=True))}),
        ("", None),
    ],
)
def test_layouts_of_imagenet(tmp_path: Path, below: str, texts: Mapping[str, str] | None) -> None:
    root = imagenet(tmp_path, below, texts or {"synset_words.txt": words(" ")}, flat=texts is not None)
    data = ImagenetConfig(root=root, workers=0).load()
    named = texts is None or "LOC_synset_mapping.txt" in texts
    assert data.classes[0] == ("tench" if named else "n01440764")
    assert sorted(data.targets[data.splits["test"]].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    if texts is not None:
        assert data.targets[data.splits["test"]].tolist() == [0, 1, 2, 3] * 2
    read = values_of(data, data.splits["test"].tolist())
    assert read.shape == (8, 3, 224, 224)
    shown = (read[:, :, 100, 100] * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor([0.485, 0.456, 0.406])) * 255
    assert torch.allclose(shown, 40.0 * data.targets[data.splits["test"]][:, None].expand(8, 3), atol=3)


def test_missing_folders_and_labels_are_named(tmp_path: Path) -> None:
    with raises(DataError, tmp_path, "tiny-imagenet-200"):
        TinyImagenetConfig(root=tmp_path).load()
    with raises(DataError, tmp_path, "ILSVRC/Data/CLS-LOC"):
        ImagenetConfig(root=tmp_path).load()
    imagenet(tmp_path, "", {"ILSVRC2012_validation_ground_truth.txt": "490\n361\n"})
    with raises(DataError, "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", TESTS):
        ImagenetConfig(root=tmp_path).load()
    for text, facts in (
        ("\n".join(OF_NAMES[:-1]), [7, 8]),
        (f"{NAMES[0]}.JPEG 0\n", [f"{NAMES[1]}.JPEG"]),
        (f"{NAMES[0]}.JPEG 17\n", ["line 1"]),
    ):
        (tmp_path / "val.txt").write_text(text)
        with raises(DataError, tmp_path / "val.txt", *facts):
            ImagenetConfig(root=tmp_path).load()
    (tmp_path / "val.txt").write_text("\n".join(["n07777777"] * TESTS))
    with raises(DataError, "n07777777"):
        ImagenetConfig(root=tmp_path).load()


def test_faults_of_tiny_imagenet(tiny: Path) -> None:
    folder = tiny / "tiny-imagenet-200"
    (folder / "train" / SYNSETS[1] / "images" / "n02012849_3.JPEG").write_bytes(b"no picture")
    with raises(DataError, "n02012849_3.JPEG"):
        TinyImagenetConfig(root=tiny).load()
    assert len(TinyImagenetConfig(root=tiny, on_bad="skip").load()) == 4 * PER_CLASS + TESTS + 2
    (folder / "val" / "val_annotations.txt").write_text("../../secret.JPEG\tn01440764\n")
    with raises(DataError, "val_annotations.txt", "line 1"):
        TinyImagenetConfig(root=tiny).load()
    (folder / "words.txt").write_text("fish\tn01440764\n")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01440764\n")
    with raises(DataError, "words.txt", "line 1"):
        TinyImagenetConfig(root=tiny).load()


def test_class_names_are_unique() -> None:
    assert class_names(SYNSETS, WORDS) == ("tench", "n02012849", "n03126707", "goldfish")
    words = {"n01440764": "crane, bird", "n02012849": "crane, machine"}
    assert class_names(SYNSETS[:3], words) == ("crane, bird", "crane, machine", "n03126707")


def test_recipes_are_the_published_ones() -> None:
    kd, crd = make("imagenet/kd", []), make("imagenet/crd", [])
    for recipe, batch, rate in ((kd, 512, 0.2), (crd, 256, 0.1)):
        assert [stage.epochs for stage in recipe.stages] == [100, 100]
        for stage in recipe.stages:
            optimizer = stage.optimizer
            assert (stage.batch_size, optimizer.learning_rate, optimizer.weight_decay) == (batch, rate, 1e-4)
            assert (optimizer.name, optimizer.momentum, optimizer.milestones) == ("sgd", 0.9, (30, 60, 90))
    method = kd.stages[-1].method.model_dump()
    assert (method["temperature"], method["fixed"]) == (1.0, (0.5, 0.5))
    assert kd.student.model_dump()["model"] == "imagenet-resnet18"
    assert kd.teachers["cnn"].model_dump()["model"] == "imagenet-resnet34"
    tiny = make("tiny-imagenet/kd", []).stages[-1]
    assert (tiny.epochs, tiny.batch_size, tiny.optimizer.milestones) == (200, 256, (60, 120, 160))
    assert tiny.optimizer.weight_decay == 5e-4


@pytest.mark.slow
def test_a_first_run_on_tiny_imagenet(tiny: Path, tmp_path: Path) -> None:
    settings = ["student=cifar-resnet8", "teachers.cnn=cifar-resnet8", f"data.root={tiny}", "data.workers=0"]
    recipe = make("tiny-imagenet/kd", settings).tiny()
    stages = tuple(stage.model_copy(update={"steps": 1, "epochs": 1, "batch_size": 8}) for stage in recipe.stages)
    stages = tuple(one.model_copy(update={"optimizer": one.optimizer.within(1)}) for one in stages)
    report = run(recipe.model_copy(update={"stages": stages}), tmp_path / "out", progress=False)
    assert {row.method for row in report.rows} >= {"chance", "teacher:cnn", "kd"}
