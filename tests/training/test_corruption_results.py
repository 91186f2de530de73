"""A finished run on corrupted pictures: accuracies and the mean corruption error, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import called
from facts import raises, states

from crossdistill import Dataset, InputSpec, Recipe, Stage, load_student, run
from crossdistill.bank.fused import Fused
from crossdistill.data.corruptions import CORRUPTIONS, corrupted
from crossdistill.errors import DataError, SettingError
from crossdistill.runtime.progress import Quiet
from crossdistill.teacher import Live
from crossdistill.testing import toy_dataset, toy_models
from crossdistill.training.analysis import analyse
from crossdistill.training.corruption_results import chosen_corruptions, chosen_severities, robustness

KINDS = ("gaussian-noise", "contrast")


def pictures() -> Dataset:
    """Pictures (1, 8, 8) of four classes that a network tells apart after two epochs, most of them."""
    classes = torch.arange(4).repeat(30)
    generator = torch.Generator().manual_seed(2)
    values = 0.6 * torch.rand(4, 1, 8, 8, generator=generator)[classes]
    values = values + 0.4 * torch.rand(120, 1, 8, 8, generator=generator)
    spec = InputSpec("image", (1, 8, 8))
    return Dataset.from_arrays("pictures", {"image": values}, classes, input_specs={"image": spec})


def made() -> Recipe:
    stages = (
        Stage(method="supervised", learner="cnn", teachers=(), epochs=2, batch_size=8),
        Stage(method="kd", epochs=2, batch_size=8),
    )
    return Recipe(data=pictures(), student="small-image", teachers={"cnn": "small-image"}, stages=stages)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(made(), out)
    return out


def test_accuracies_and_errors_by_hand(finished: Path, tmp_path: Path) -> None:
    recipe = made()
    found = analyse(finished, recipe, corruptions=KINDS, severities=(2, 5), baseline="cnn")
    measured = found.robustness
    assert measured is not None
    student, dataset = load_student(finished), recipe.data
    rows = dataset.splits["test"].sort().values
    for kind in KINDS:
        for place, severity in enumerate((2, 5)):
            changed = corrupted(dataset.inputs["image"][rows], kind, severity, rows)
            right = student.logits({"image": changed}).argmax(1) == dataset.targets[rows]
            assert measured.accuracy["student"][kind][place] == pytest.approx(float(right.double().mean()))
    assert measured.clean["student"] == pytest.approx(found.sources["student"].accuracy)
    errors = {
        name: [sum(1 - value for value in measured.accuracy[name][kind]) for kind in KINDS]
        for name in ("student", "teacher:cnn")
    }
    pairs = [(own, base) for own, base in zip(errors["student"], errors["teacher:cnn"], strict=True) if base]
    if pairs:
        wanted = sum(own / base for own, base in pairs) / len(pairs)
        assert measured.corruption_error("student") == pytest.approx(wanted)
    plain = replace(measured, baseline=None, baseline_errors=None)
    assert plain.corruption_error("student") == pytest.approx(sum(errors["student"]) / 4)
    found.save(tmp_path)
    stored = json.loads((tmp_path / "test-corruptions.json").read_text())
    assert stored["sources"]["student"]["accuracy"]["contrast"] == list(measured.accuracy["student"]["contrast"])
    assert "corruptions" not in json.loads((tmp_path / "test.json").read_text())
    for text in ("gaussian-noise", "teacher:cnn", "unchanged", "mean ECE", "The test split of pictures"):
        assert text in measured.markdown()


def test_a_fused_teacher_with_a_stored_part_is_left_out(finished: Path) -> None:
    # The stored part would answer for the unchanged picture.
    dataset = pictures()
    network, stored = (load_student(finished).network for _ in range(2))
    for one in (network, stored):
        one.probe(dataset.example())
    stored.reads = ()
    live = {name: Live(name, network) for name in ("cnn", "clip")}
    sources = {
        "fused": Fused(live, {"cnn": 0.7, "clip": 0.3}),
        "half": Fused({**live, "clip": Live("clip", stored)}, {"cnn": 0.7, "clip": 0.3}),
        "stored": Live("clip", stored),
    }
    rows, display = dataset.splits["test"], Quiet()
    found = robustness(sources, dataset, "test", rows, torch.device("cpu"), ("contrast",), (1,), display)
    assert found.accuracy.keys() == {"fused"}


def test_another_run_is_a_baseline_under_the_same_conditions(finished: Path) -> None:
    analyse(finished, made(), corruptions=KINDS, severities=(5,)).save(finished / "analysis")
    again = analyse(finished, made(), corruptions=KINDS[:1], severities=(5,), baseline=str(finished)).robustness
    assert again is not None
    error = again.corruption_error("student")
    assert error == pytest.approx(1.0) or again.without_error
    with raises(DataError, "severities", "[4]", "[5]"):
        analyse(finished, made(), corruptions=KINDS, severities=(4,), baseline=str(finished))
    file = finished / "analysis" / "test-corruptions.json"
    stored = json.loads(file.read_text())
    # Another split of the same data, such as that of another seed, has as many rows.
    file.write_text(json.dumps({**stored, "rows_key": "0" * 64}))
    with raises(DataError, "rows_key", "0" * 64):
        analyse(finished, made(), corruptions=KINDS, severities=(5,), baseline=str(finished))
    with raises(DataError, "validation-corruptions.json"):
        analyse(finished, made(), split="validation", corruptions=KINDS, baseline=str(finished))
    with raises(SettingError, "'cnnn'", "'cnn'"):
        analyse(finished, made(), corruptions=KINDS, baseline="cnnn")


def test_corruptions_and_severities_by_name() -> None:
    assert chosen_corruptions("all") == CORRUPTIONS
    assert chosen_corruptions("contrast, gaussian-noise") == ("contrast", "gaussian-noise")
    assert chosen_severities("5,1") == (1, 5)
    with raises(SettingError, "'contrasts'", "'contrast'"):
        chosen_corruptions("contrasts")
    with raises(SettingError, "'6'"):
        chosen_severities("1,6")


def test_data_without_pictures(tmp_path: Path) -> None:
    data = toy_dataset()
    networks = toy_models(data, 1)
    (name, student), *_ = networks.items()
    recipe = Recipe(data=data, student=student, student_name=name, stages=[Stage(method="supervised", epochs=1)])
    run(recipe, tmp_path)
    with raises(DataError, "toy", "pictures"):
        analyse(tmp_path, recipe, corruptions=KINDS)


def test_the_command(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from test_corruption_results import made\n")
    words = ("analyse", finished, "--recipe", f"{tmp_path / 'mine.py'}:made", "--out", tmp_path / "out")
    here = {"capsys": capsys, "monkeypatch": monkeypatch}
    said = called(*words, "--rows", 10, "--corruptions", "contrast", "--severities", 1, "--json", **here)
    assert said.status == 0, said.err
    plain = json.loads(said.out)
    assert (plain["split"], plain["rows"]) == ("test", 10)
    assert plain["corruptions"]["sources"]["student"]["accuracy"].keys() == {"contrast"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"test.json", "test.svg", "test-corruptions.md"}
    states(called(*words, "--teacher", "cn", **here).complaint(), "'cn'", "'cnn'")
    states(called("analyse", tmp_path, **here).complaint(), tmp_path / "recipe.yaml")
    states(called("analyse", tmp_path, "--baseline", "mm", **here).complaint(), "--baseline mm", "--corruptions")
