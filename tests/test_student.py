"""The product: a folder that loads elsewhere, answers as the network did, and imports nothing that it names."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import pictures
from facts import raises
from torch import Tensor, nn

from crossdistill import InputSpec, Network, NetworkConfig
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.errors import DataError, RunError, SettingError, ShapeError, SignalError
from crossdistill.run_folder.student_card import model_card
from crossdistill.run_folder.student_files import sealed
from crossdistill.student import load_student, save_student
from crossdistill.testing import toy_dataset

MODEL = NetworkConfig(model="small-image", reads=("picture",))


def dataset() -> Dataset:
    return pictures(InputSpec("array", (1, 8, 8), {"about": "toy"}, {"basis": torch.eye(3)[:, ::2]}))


def network() -> Network:
    torch.manual_seed(2)
    made = MODEL.build(3)
    made.probe(dataset().example())
    return made


class Foreign(nn.Module):
    """Nothing out of the table: two inputs, a result of its own, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"scores": self.norm(self.first(first) + self.second(second.flatten(1)))}


def foreign() -> Network:
    return Network(
        Foreign(), ("first", "second"), ("norm",), output_adapter=lambda result: {"logits": result["scores"]}
    )


def test_a_student_of_the_table_comes_back(tmp_path: Path) -> None:
    made, data = network(), dataset()
    save_student(tmp_path / "student", made, MODEL, data, "card")
    student = load_student(tmp_path / "student")
    assert student.classes == data.classes
    assert student.network.reads == ("picture",)
    assert student.network.taps == made.taps
    assert not student.network.training
    inputs = data.inputs["picture"][:5]
    assert torch.equal(student.logits({"picture": inputs}), made.eval().module(inputs))
    assert not student.logits({"picture": inputs}).requires_grad
    spec = student.inputs["picture"]
    assert (spec.kind, spec.shape, spec.options) == ("array", (1, 8, 8), {"about": "toy"})
    assert torch.equal(spec.parameters["basis"], torch.eye(3)[:, ::2])


def test_a_runs_folder_is_as_good_as_its_students(tmp_path: Path) -> None:
    save_student(tmp_path / "student", network(), MODEL, dataset(), "card")
    assert load_student(str(tmp_path)).classes == dataset().classes


def test_the_folder_holds_no_time_and_no_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        save_student(tmp_path / name, network(), MODEL, dataset(), "card")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preparation.safetensors"]
    for name in names:
        content = (tmp_path / "here" / name).read_bytes()
        assert content == (tmp_path / "there" / name).read_bytes()
        assert str(tmp_path).encode() not in content


def test_a_foreign_module_is_passed_in_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, data = foreign(), toy_dataset()
    made.train()(data.example(8))
    save_student(tmp_path / "student", made, made, data, "card")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["model"] == {"class": f"{__name__}.Foreign"}
    config["model"]["class"] = "evil_module.Evil"
    (tmp_path / "student" / "config.json").write_text(sealed(config))
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with raises(SettingError, "'evil_module.Evil'"):
        load_student(tmp_path / "student")
    assert "evil_module" not in sys.modules
    other = foreign()
    student = load_student(tmp_path / "student", module=other)
    inputs = {name: data.inputs[name][:5] for name in ("first", "second")}
    assert torch.equal(student.logits(inputs), made.eval().module(**inputs)["scores"])


def test_a_plain_foreign_module_needs_no_network_around_it(tmp_path: Path) -> None:
    data = toy_dataset()
    made = Network(nn.Linear(6, 4), ("first",))
    save_student(tmp_path / "student", made, made, data, "card")
    student = load_student(tmp_path / "student", module=nn.Linear(6, 4))
    inputs = data.inputs["first"][:5]
    assert torch.equal(student.logits({"first": inputs}), made.module(inputs))


def test_weights_that_do_not_fit_the_module_are_refused(tmp_path: Path) -> None:
    made = Network(nn.Linear(6, 4), ("first",))
    save_student(tmp_path / "student", made, made, toy_dataset(), "card")
    with raises(ShapeError, "weight", "(4, 6)", "(4, 7)"):
        load_student(tmp_path / "student", module=nn.Linear(7, 4))


def test_files_are_predicted_as_the_network_does(tmp_path: Path) -> None:
    made, data = network(), dataset()
    save_student(tmp_path / "student", made, MODEL, data, "card")
    files = []
    for row in range(4):
        np.save(tmp_path / f"{row}.npy", data.inputs["picture"][row].numpy())
        files.append(tmp_path / f"{row}.npy")
    student = load_student(tmp_path)
    found = student.predict(files)
    wanted = student.logits({"picture": data.inputs["picture"][:4]}).softmax(1)
    assert [one.label for one in found] == [data.classes[int(index)] for index in wanted.argmax(1)]
    assert [one.probability for one in found] == pytest.approx(wanted.amax(1).tolist())
    (alone,) = student.predict([str(files[2])])
    assert (alone.label, alone.probability) == (found[2].label, pytest.approx(found[2].probability))
    assert student.predict([]) == []


def test_what_cannot_be_predicted_is_said(tmp_path: Path) -> None:
    save_student(tmp_path / "student", network(), MODEL, dataset(), "card")
    student = load_student(tmp_path)
    with raises(DataError, "none.npy"):
        student.predict([tmp_path / "none.npy"])
    with raises(SignalError, "SmallImage", "'picture'", "known: sound"):
        student.logits({"sound": torch.zeros(2, 1, 8, 8)})
    made, data = foreign(), toy_dataset()
    save_student(tmp_path / "two", made, made, data, "card")
    with raises(SettingError, "first, second", "logits"):
        load_student(tmp_path / "two", module=foreign()).predict(["a.npy"])


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def harm(path: Path) -> object:
        config = json.loads((path / "config.json").read_text())
        changed = change(config)
        changed = config if changed is None else changed
        return (path / "config.json").write_text(sealed(changed) if isinstance(changed, dict) else json.dumps(changed))

    return harm


@pytest.mark.parametrize(
    ("harm", "kind", "facts"),
    [
        (lambda path: (path / "config.json").unlink(), RunError, ("folder", "student's")),
        (lambda path: (path / "config.json").write_text("{"), RunError, ("config.json",)),
        (rewritten(lambda config: []), RunError, ("config.json",)),
        (rewritten(lambda config: config.pop("reads") and None), RunError, ("config.json", "reads")),
        (rewritten(lambda config: {**config, "model": 3}), RunError, ("config.json",)),
        (rewritten(lambda config: {**config, "inputs": [1]}), RunError, ("config.json",)),
        (rewritten(lambda config: {**config, "model": {"name": "small-image"}}), RunError, ("None classes", 3)),
        (rewritten(lambda config: {**config, "classes": ["a"] * 9}), RunError, ("3 classes", 9)),
        (lambda path: (path / "model.safetensors").unlink(), DataError, ("model.safetensors",)),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 50), DataError, ("model.safetensors",)),
        (lambda path: (path / "preparation.safetensors").write_bytes(b""), DataError, ("preparation.safetensors",)),
    ],
)
def test_a_damaged_folder_says_which_file(
    tmp_path: Path, harm: Callable[[Path], object], kind: type[Exception], facts: tuple[object, ...]
) -> None:
    save_student(tmp_path / "student", network(), MODEL, dataset(), "card")
    harm(tmp_path / "student")
    with raises(kind, *facts):
        load_student(tmp_path / "student")


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with raises(RunError, "crossdistill run", "--resume"):
        load_student(tmp_path)


def test_the_card_names_licences_and_warns() -> None:
    free = Licence("digits", "BSD-3-Clause", "https://example.org/digits", commercial=True)
    bound = Licence("voices", "CC-BY-NC-4.0", "https://example.org/voices", commercial=False)
    card = model_card(replace(dataset(), licences=(free, bound)), "A title", "| table |", ["mm", "audio"], 16_290)
    assert "# A title" in card
    assert "A student of 16,290 parameters" in card
    assert "Teachers: mm, audio." in card
    assert "| table |" in card
    assert "- digits: BSD-3-Clause (https://example.org/digits)\n" in card
    assert "- voices: CC-BY-NC-4.0 (https://example.org/voices). **Forbids commercial use.**" in card
    bare = model_card(dataset(), "A title", "", [], 1)
    assert "none, labels alone" in bare
    assert "- not stated" in bare
    assert 'load_student("this folder")\n' in bare
    assert 'load_student("this folder", module=' in model_card(dataset(), "A title", "", [], 1, foreign=True)
