"""Damaged run folders: mended where the numbers stay the same, or refused with a sentence; never another number."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command
from facts import raises

from crossdistill import Dataset, Network, Recipe, Stage, load_student, run
from crossdistill.compare import Grid, compare
from crossdistill.compare.results.collect import _answers
from crossdistill.data import cache
from crossdistill.errors import CrossdistillError, RunError, StoppedError
from crossdistill.recipes import make
from crossdistill.report import PREDICTIONS, Report
from crossdistill.run_folder.folder import unchanged
from crossdistill.runtime.files import read_sealed, write_sealed
from crossdistill.testing import toy_dataset
from crossdistill.training.evaluation import evaluate_folder

LOGS = {"metrics.jsonl"}
"""What nothing reads a number from."""
CARD = "student/README.md"
"""May be edited."""


@pytest.fixture(scope="module")
def recipe(digits: None) -> Recipe:
    return make("av-digits/kd", ["checkpoints.steps=1"]).tiny()


@pytest.fixture(scope="module")
def dataset(recipe: Recipe) -> Dataset:
    assert not isinstance(recipe.data, Dataset)
    return recipe.data.load()


@pytest.fixture(scope="module")
def whole(recipe: Recipe, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("damaged") / "whole"
    run(recipe, out, dataset=dataset)
    return out


@pytest.fixture(scope="module")
def killed(recipe: Recipe, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has a stage that is finished, and checkpoints of the next one."""
    out = tmp_path_factory.mktemp("damaged") / "killed"
    left = [10**6]

    def stop() -> bool:
        if (out / "stages" / "00-supervised-mm").is_dir():
            left[0] = min(left[0], 3)
        left[0] -= 1
        return left[0] == 0

    with pytest.raises(StoppedError):
        run(recipe, out, dataset=dataset, stop=stop)
    assert len(list((out / "checkpoints").iterdir())) == 2
    return out


def numbers(report: Report) -> list[Any]:
    return [(row.method, row.metric, row.mean, row.values, row.test_rows, row.labelled) for row in report.rows]


Harm = Callable[[Path, random.Random], None]


def truncated(path: Path, source: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: source.randrange(len(content) or 1)])


def emptied(path: Path, source: random.Random) -> None:
    path.write_bytes(b"")


def removed(path: Path, source: random.Random) -> None:
    path.unlink()


def flipped(path: Path, source: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def another_digit(path: Path, source: random.Random) -> None:
    """Still well-formed: one digit is another one."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if byte in b"123456789"]
    if places:
        content[source.choice(places)] = source.choice(b"123456789")
    path.write_bytes(content)


def of_another_type(path: Path, source: random.Random) -> None:
    path.write_text(source.choice(["{}", "[]", "null", '"text"', "3", "[{}]", '{"key": 3}', "[" * 100_000, "{" * 9]))


def a_folder(path: Path, source: random.Random) -> None:
    path.unlink()
    path.mkdir()


def inner_types(path: Path, source: random.Random) -> None:
    """JSON whose values are of other types, and whose seal is right."""
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return flipped(path, source)
    wrong = source.choice([None, [], {}, "x", -1, 1e300])
    if isinstance(value, dict) and value:
        value = {name: one for name, one in value.items() if name != "sha256"}
        write_sealed(path, {**value, source.choice(sorted(value)): wrong})
    elif isinstance(value, list) and value:
        value[-1] = {**value[-1], source.choice(sorted(value[-1])): wrong}
        path.write_text(json.dumps(value))
    return None


HARMS: tuple[Harm, ...] = (truncated, emptied, removed, flipped, another_digit, of_another_type, a_folder, inner_types)


def attempts(out: Path, recipe: Recipe, dataset: Dataset, wanted: Path) -> list[str]:
    """Resume, evaluate, collect: what each ended in; asserts that numbers are the undisturbed run's."""
    ended = []

    def attempt(what: str, work: Callable[[], None]) -> None:
        try:
            work()
            ended.append(what)
        except CrossdistillError as error:
            text = str(error)
            assert text
            assert "Traceback" not in text
            ended.append(f"{what}: {text}")

    def evaluated() -> None:
        unchanged(out)
        own = Recipe.from_yaml(out / "recipe.yaml")
        assert own.model_copy(update={"origin": None}) == recipe.model_copy(update={"origin": None})
        found = evaluate_folder(out, recipe.model_copy(update={"data": dataset}), "test")
        assert found["value"] == Report.load(wanted).rows[-1].mean

    def collected() -> None:
        assert numbers(Report.load(out)) == numbers(Report.load(wanted))
        assert np.array_equal(_answers(out / PREDICTIONS).right, _answers(wanted / PREDICTIONS).right)

    def resumed() -> None:
        assert numbers(run(recipe, out, resume=True, dataset=dataset)) == numbers(Report.load(wanted))
        for name in ("model.safetensors", "preparation.safetensors", "config.json"):
            assert (out / "student" / name).read_bytes() == (wanted / "student" / name).read_bytes(), name

    attempt("evaluated", evaluated)
    attempt("resumed", resumed)
    if ended[-1] == "resumed":
        attempt("evaluated again", evaluated)
        attempt("collected", collected)
        assert ended[-2:] == ["evaluated again", "collected"], ended
    return ended


def spoilt(source: Path, out: Path, seed: int) -> tuple[str, Harm]:
    """A copy with one file damaged: every kind of file gets its turn."""
    shutil.copytree(source, out)
    generator = random.Random(seed)
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    kinds = sorted({(path.parent.name if "-" not in path.parent.name else "", path.name) for path in files})
    kind = kinds[seed % len(kinds)]
    same = [p for p in files if (p.parent.name if "-" not in p.parent.name else "", p.name) == kind]
    path, harm = generator.choice(same), generator.choice(HARMS)
    harm(path, generator)
    return str(path.relative_to(out)), harm


@pytest.mark.slow
@pytest.mark.parametrize("state", ["whole", "killed"])
def test_c_a_hundred_damaged_runs(
    state: str, request: pytest.FixtureRequest, recipe: Recipe, dataset: Dataset, whole: Path, tmp_path: Path
) -> None:
    """No traceback, no wait, and never another number."""
    source: Path = request.getfixturevalue(state)
    mended = 0
    for seed in range(60):
        out = tmp_path / str(seed)
        name, harm = spoilt(source, out, seed)
        try:
            ended = attempts(out, recipe, dataset, whole)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {harm.__name__} {name}: {type(error).__name__}: {error}") from error
        mended += "resumed" in ended
        shutil.rmtree(out)
    assert mended > 20


@pytest.mark.parametrize(
    ("name", "harm", "mends"),
    [
        ("sources.json", of_another_type, True),
        ("sources.json", truncated, True),
        ("environment.json", truncated, False),
        ("environment.json", of_another_type, False),
        ("predictions.npz", truncated, True),
        ("predictions.npz", emptied, True),
        ("results.json", lambda path, source: path.write_text("{}"), True),
        ("results.json", another_digit, True),
        ("files.json", truncated, True),
        ("student/config.json", another_digit, True),
        ("student/model.safetensors", flipped, True),
        ("student/preparation.safetensors", removed, True),
    ],
)
def test_c_one_damaged_file_of_a_finished_run(
    recipe: Recipe, dataset: Dataset, whole: Path, tmp_path: Path, name: str, harm: Harm, mends: bool
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    harm(out / name, random.Random(1))
    ended = attempts(out, recipe, dataset, whole)
    assert ("resumed" in ended) is mends, ended
    if not mends:
        assert name in ended[-1]


def test_a6_a_missing_student_is_written_again(
    recipe: Recipe, dataset: Dataset, whole: Path, tmp_path: Path, crossdistill: Command
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "student")
    assert "--resume" in crossdistill("eval", out).complaint()
    assert crossdistill("run", out, "--resume").status == 0
    assert crossdistill("eval", out).status == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(recipe, out, resume=True, dataset=dataset)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_c_a_recipe_that_was_changed_is_not_followed(whole: Path, tmp_path: Path, crossdistill: Command) -> None:
    """The rows of a test split are drawn with its seed: another one would give another number."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    text = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    assert "recipe.yaml" in crossdistill("eval", out).complaint()
    assert "recipe.yaml" in crossdistill("run", out, "--resume").complaint()


def test_c_a_checkpoint_of_another_step_is_passed_over(
    recipe: Recipe, dataset: Dataset, killed: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(killed, out)
    newest = max((out / "checkpoints").iterdir()) / "about.json"
    about = read_sealed(newest)
    newest.write_text(newest.read_text().replace(f'"step": {about["step"]}', f'"step": {about["step"] + 1}'))
    assert read_text_step(newest) == about["step"] + 1
    assert numbers(run(recipe, out, resume=True, dataset=dataset)) == numbers(Report.load(whole))
    weights = "student/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def read_text_step(path: Path) -> int:
    return int(json.loads(path.read_text())["step"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "predictions.npz"])
def test_c_a_damaged_cell_is_mended_by_its_comparison(name: str, tmp_path: Path, digits: None) -> None:
    grid = Grid.parse("av-digits", methods="supervised", students="image", seeds=2, tiny=True)
    before = compare(grid, tmp_path / "c", jobs=1)
    cell = sorted((tmp_path / "c" / "cells").iterdir())[0]
    truncated(cell / name, random.Random(3))
    after = compare(grid, tmp_path / "c", jobs=1, resume=True)
    rows = [numbers(Report(tmp_path, one.findings.collected.rows)) for one in (before, after)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "name": "a", "recipe": {}}', "[" * 100_000])
def test_c_a_damaged_manifest_of_the_cache(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    built = []

    def build(folder: Path) -> None:
        built.append(1)
        torch.save({}, folder / "file")

    path = cache.keep("some", {"seed": 0}, build)
    for inner in (text, '{"files": {"file": 3}, "name": "a", "recipe": {}}', '{"files": {}, "name": 3, "recipe": {}}'):
        (path / cache.MANIFEST).write_text(inner)
        assert cache.find("some", {"seed": 0}) is None
        assert cache.entries() == []
        assert cache.keep("some", {"seed": 0}, build) == path
        assert cache.find("some", {"seed": 0}) is not None
    assert len(built) == 4


def test_c_predictions_of_an_earlier_version_are_looked_at(tmp_path: Path) -> None:
    """They have no hashes."""
    for arrays in ({"ids": np.arange(3)}, {"ids": np.arange(3), "predicted": np.arange(2), "targets": np.arange(3.0)}):
        np.savez(tmp_path / PREDICTIONS, **arrays)
        with raises(RunError, PREDICTIONS):
            _answers(tmp_path / PREDICTIONS)


@pytest.mark.parametrize("taken", [("student",), ("results.json", "files.json", "predictions.npz")])
def test_a6_parts_of_another_run_are_not_this_runs(tmp_path: Path, taken: tuple[str, ...]) -> None:
    """Each part is sound by itself, so that only their belonging together tells."""
    student = Network(factory=lambda: torch.nn.Linear(6, 4), reads="first")
    stages = (Stage(method="supervised", epochs=1),)
    given = Recipe(data=toy_dataset(("first",), rows=60), student=student, stages=stages)
    for seed in (0, 1):
        run(given.model_copy(update={"seed": seed}), tmp_path / str(seed))
    files = [tmp_path / "0" / name for name in ("predictions.npz", "student/model.safetensors")]
    kept = [file.read_bytes() for file in files]
    for name in taken:
        theirs, own = tmp_path / "1" / name, tmp_path / "0" / name
        if own.is_dir():
            shutil.rmtree(own)
        (shutil.copytree if theirs.is_dir() else shutil.copy)(theirs, own)
    with raises(RunError, "another run"):
        load_student(tmp_path / "0", torch.nn.Linear(6, 4))
    run(given, tmp_path / "0", resume=True)
    assert [file.read_bytes() for file in files] == kept
    assert load_student(tmp_path / "0", torch.nn.Linear(6, 4))
