import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Heard
from facts import raises
from named import made

from crossdistill import Batch, Dataset, Recipe, Stage, load_student, run
from crossdistill.backends.names import check_name
from crossdistill.data.rendered import rendered
from crossdistill.errors import SettingError
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes import make
from crossdistill.training.evaluation import evaluate_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Folder = Callable[[str], Path]


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


def test_classes_in_another_order_are_permuted(folder: Folder, digits: Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder("vit"), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["id2label"] = {str(number): str(9 - number) for number in range(10)}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    right, turned = made(folder("vit"), digits), made(tmp_path / "vit", digits)
    assert "are put into the data's order, by name" in turned.notes[0]
    batch = Batch({"image@big": torch.randn(3, 3, 32, 32)}, torch.arange(3))
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


def test_names_in_a_recipe(folder: Folder) -> None:
    with pytest.raises(ValueError, match=r"timn.*timm"):
        NetworkConfig.model_validate("timn:resnet18")
    with pytest.raises(ValueError, match="small-imag"):
        NetworkConfig.model_validate("small-imag")
    with raises(SettingError, "runs/none", "run:FOLDER", "transformers:FOLDER"):
        check_name("runs/none")
    with raises(SettingError, f"transformers:{folder('vit')}"):
        check_name(str(folder("vit")))
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
