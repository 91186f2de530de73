"""What each command gives: names, files and columns that other tools rely on."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, process
from safetensors import safe_open
from safetensors.torch import load_file

import crossdistill as package
from crossdistill import Recipe, load_student
from crossdistill.methods import METHODS
from crossdistill.recipes import PLANS, make, names

FILES = Path(__file__).resolve().parent / "recipe_files.py"
COLUMNS = [
    *("data", "method", "teachers", "student", "labelled", "control", "metric"),
    *("mean", "std", "values", "test_rows", "seconds", "peak_memory_mb"),
]


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return rows


def test_version(crossdistill: Command) -> None:
    said = crossdistill("--version")
    assert (said.status, said.out) == (0, f"crossdistill {package.__version__}\n")


@pytest.mark.parametrize("command", ["run", "compare", "eval", "predict", "list", "doctor"])
def test_every_command_explains_itself(crossdistill: Command, command: str) -> None:
    said = crossdistill(command, "--help")
    assert said.status == 0
    assert f"Usage: crossdistill {command}" in said.out
    for option in {"run": ["--set", "--seed", "--out", "--resume", "--tiny", "--dry-run", "--offline"]}.get(
        command, []
    ):
        assert option in said.out


def test_models_with_exact_sizes(crossdistill: Command) -> None:
    said = crossdistill("list", "models", "--json")
    assert (said.status, said.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert {name for name, row in rows.items() if row["parameters"] is None} == {"mlp", "fusion"}
    assert rows["mlp"]["modalities"] == ["numbers"]
    assert all(list(row) == ["name", "parameters", "modalities", "taps"] for row in rows.values())
    sizes = {"lenet5": 61_706, "three-layer-cnn-a": 343_562, "cnn-i": 1_809_752}
    assert {name: rows[name]["parameters"] for name in sizes} == sizes
    assert rows["cnn-i"]["modalities"] == ["image", "audio"]
    taps = [tap for tap in rows["lenet5"]["taps"] if not tap.endswith("_relu")]
    assert taps == ["conv1", "conv2", "conv3", "flatten_identity", "fc1", "fc2"]


def test_lists(crossdistill: Command, digits: None) -> None:
    def listed(what: str) -> dict[str, Any]:
        return {row["name"]: row for row in json.loads(crossdistill("list", what, "--json").out)}

    assert list(listed("recipes")) == names()
    assert {"av-digits/supervised", "av-digits/kd", "av-digits/mst-distill", "av-mnist/mst-distill"} <= set(names())
    methods = listed("methods")
    presets = [name for name, plan in PLANS.items() if plan.differs is not None]
    assert list(methods) == [*METHODS, *(name for name in presets if name not in METHODS)]
    assert methods["kd"]["settings"]["temperature"] == 4.0
    data = listed("data")
    assert {"av-digits", "av-mnist"} <= set(data)
    for what in ("recipes", "methods", "data", "models"):
        said = crossdistill("list", what)
        assert said.status == 0
        assert all(name in said.out for name in listed(what))


def test_a_tiny_run_and_what_it_leaves(digits: None, crossdistill: Command) -> None:
    said = crossdistill("run", "av-digits/kd", "--tiny", "--seed", "3", "--set", "student=audio")
    assert said.status == 0, said.err
    out = Path("runs/av-digits-kd-audio-seed3-tiny")
    assert "| av-digits | audio | 100% | kd (mm) |" in said.out
    assert f"student: {out / 'student'}" in said.err
    assert {path.name for path in out.iterdir()} >= {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "results.json", "predictions.npz", "student", "stages")
    }
    rows = rows_of(out)
    assert all(list(row) == COLUMNS for row in rows)
    assert [row["method"] for row in rows] == ["chance", "teacher:mm", "kd"]
    kd = rows[-1]
    assert (kd["data"], kd["teachers"], kd["student"], kd["labelled"]) == ("av-digits", "mm", "audio", 1.0)
    assert (kd["control"], kd["metric"], kd["std"], kd["test_rows"]) == (None, "accuracy", None, 200)
    assert kd["values"] == [kd["mean"]]
    assert kd["seconds"] > 0
    assert kd["peak_memory_mb"] > 10
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["stage"] == "kd")
    assert (step["kind"], step["epoch"], step["step"]) == ("step", 0, 0)
    assert {"raw/task", "weighted/task", "raw/kd/mm", "weighted/kd/mm", "loss"} <= set(step)
    assert step["weighted/task"] == pytest.approx(step["raw/task"] / 2)
    with np.load(out / "predictions.npz") as predictions:
        assert (predictions["predicted"] == predictions["targets"]).mean() == kd["mean"]


def test_the_shuffled_control_is_named_after_its_method(digits: None, crossdistill: Command) -> None:
    words = ["--set", "control=shuffled", "--set", "labelled=0.25", "--out", "out"]
    assert crossdistill("run", "av-digits/kd", "--tiny", *words).status == 0
    row = rows_of(Path("out"))[-1]
    assert (row["method"], row["control"], row["labelled"]) == ("kd@shuffled", "shuffled", 0.25)


def test_the_student_is_a_folder_of_its_own(finished_run: Path) -> None:
    folder = finished_run / "student"
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "preparation.safetensors", "README.md")
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"]["name"], config["reads"]) == ("small-image", ["image"])
    assert config["classes"] == list("0123456789")
    assert config["inputs"]["image"]["shape"] == [1, 8, 8]
    assert {"mean", "deviation"} <= set(json.dumps(config["inputs"]["image"]["options"]["normalisation"]).split('"'))
    assert sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) == 16_290
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        assert not file.metadata()
    card = (folder / "README.md").read_text()
    assert "| av-digits | image | 100% | supervised |" in card
    assert "CC BY 4.0" in card
    assert str(finished_run.parent) not in card + json.dumps(config)


def test_equal_runs_give_equal_bytes(finished_run: Path, crossdistill: Command) -> None:
    """In another folder, at another time, from the saved recipe: no path and no time is in the weights."""
    assert crossdistill("run", finished_run / "recipe.yaml", "--out", "again").status == 0
    for name in ("model.safetensors", "preparation.safetensors", "config.json"):
        assert Path("again/student", name).read_bytes() == (finished_run / "student" / name).read_bytes(), name
    assert Path("again/recipe.yaml").read_text() == (finished_run / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("crossdistill.recipes.av_digits:av_digits", ["method=supervised"]), (f"{FILES}:live", ["epochs=1"])],
)
def test_a_recipe_is_a_function(digits: None, crossdistill: Command, recipe: str, settings: list[str]) -> None:
    words = [word for text in settings for word in ("--set", text)]
    said = crossdistill("run", recipe, *words, "--tiny", "--out", "out")
    assert said.status == 0, said.err
    assert rows_of(Path("out"))[-1]["mean"] > 0


def test_dry_run_says_what_would_happen_and_writes_nothing(digits: None, crossdistill: Command, tmp_path: Path) -> None:
    said = crossdistill("run", "av-digits/mst-distill", "--tiny", "--dry-run")
    assert said.status == 0, said.err
    for word in ("collaborate", "specialise", "route", "projected", "MB", "16,290", "train 300", "teachers"):
        assert word in said.out, word
    assert not list(tmp_path.iterdir())


def test_eval_repeats_what_the_run_measured(finished_run: Path, crossdistill: Command) -> None:
    result = json.loads(crossdistill("eval", finished_run, "--json").out)
    value = rows_of(finished_run)[-1]["mean"]
    assert result == {"split": "test", "metric": "accuracy", "value": value, "rows": 200, "of": 200}
    said = crossdistill("eval", finished_run, "--split", "validation")
    assert "accuracy 0." in said.out
    assert "on 100 rows of the validation split" in said.out
    assert "macro-f1 0." in crossdistill("eval", finished_run, "--metric", "macro-f1").out


def test_predict_names_a_class_for_each_file(finished_run: Path, crossdistill: Command) -> None:
    recipe = Recipe.from_yaml(finished_run / "recipe.yaml")
    dataset = recipe.data.load()
    rows = dataset.splits["test"][:3]
    files = [Path(f"{row}.npy") for row in rows.tolist()]
    for file, row in zip(files, rows.tolist(), strict=True):
        np.save(file, dataset.inputs["image"][row].numpy())
    predictions = json.loads(crossdistill("predict", finished_run, *files, "--json").out)
    assert [list(row) for row in predictions] == [["file", "label", "probability"]] * 3
    wanted = load_student(finished_run).logits({"image": dataset.inputs["image"][rows]}).softmax(1).max(1)
    assert [row["label"] for row in predictions] == [str(int(index)) for index in wanted.indices]
    assert [row["probability"] for row in predictions] == pytest.approx(wanted.values.tolist())
    said = crossdistill("predict", finished_run / "student", files[0])
    assert said.out.startswith(f"{files[0]}: ")


def test_a_finished_run_is_left_as_it_is(finished_run: Path, crossdistill: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    said = crossdistill("run", finished_run, "--resume")
    assert said.status == 0
    assert "is finished already; nothing to do" in said.err
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_offline_is_said_to_the_model_hubs(
    finished_run: Path, crossdistill: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    for name in variables:
        monkeypatch.setenv(name, "0")
    assert crossdistill("run", finished_run, "--resume").status == 0
    assert {os.environ[name] for name in variables} == {"0"}
    assert crossdistill("run", finished_run, "--resume", "--offline").status == 0
    assert {os.environ[name] for name in variables} == {"1"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number_and_is_closed(digits: None, crossdistill: Command) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    before = set(threading.enumerate())
    words = ["--set", "tracking=tensorboard", "--out", "out"]
    assert crossdistill("run", "av-digits/supervised", "--tiny", *words).status == 0
    assert set(threading.enumerate()) == before
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("out/tensorboard")
    events.Reload()
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    wanted = [line["loss"] for line in lines if line["kind"] == "step"]
    assert [event.value for event in events.Scalars("supervised-image/loss")] == pytest.approx(wanted)


@pytest.mark.slow
def test_compare_puts_methods_side_by_side(digits: None, tmp_path: Path) -> None:
    """With real worker processes."""
    words = ["--methods", "supervised,kd", "--students", "image", "--seeds", "1", "--tiny", "--jobs", "1"]
    said = process("compare", "av-digits", *words, "--out", "out", cwd=tmp_path)
    assert said.status == 0, said.err
    assert "supervised" in said.out, said.out
    assert "not distinguishable" in said.out or "against" in said.out
    rows = rows_of(tmp_path / "out")
    assert all(list(row) == COLUMNS for row in rows)
    assert {row["method"] for row in rows} >= {"chance", "teacher:mm", "supervised", "kd"}


def test_settings_of_the_command_are_those_of_the_library(digits: None) -> None:
    recipe = make("av-digits/mst-distill", ["student=audio", "labelled=0.05", "stages.route.epochs=3"], 7)
    assert (recipe.seed, recipe.learner, recipe.stages[-1].epochs) == (7, "audio", 3)
    assert recipe.origin == (
        "av-digits/mst-distill --set student=audio --set labelled=0.05 --set stages.route.epochs=3 --seed 7"
    )
    assert make("av-digits/mst-distill", recipe.origin.split()[2:-2:2], 7) == recipe
