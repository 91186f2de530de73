"""`distill`, and recipes of tables and folders: what is picked, and what is said about it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import crossdistill
from crossdistill import Dataset, Network, NetworkConfig
from crossdistill.errors import CrossdistillError, DataError, RecipeError, ResumeError, SettingError
from crossdistill.recipes import find, make, setup_by_name
from crossdistill.recipes.own_data import default_epochs, default_network
from crossdistill.report import Report
from crossdistill.runtime.progress import Quiet
from crossdistill.training.estimate import forecast
from crossdistill.training.one_call import fitted_to, named, pick
from tests.facts import raises

COLUMNS = ("width", "height", "weight")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A table of three measures of 120 flowers of three kinds, by 12 gardens."""
    rng = np.random.default_rng(0)
    with (tmp_path / "flowers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "kind", "garden", "note"])
        for row in range(120):
            kind = row % 3
            values = rng.normal(size=3) + 3 * np.eye(3)[kind]
            writer.writerow([*np.round(values, 3), ("rose", "lily", "iris")[kind], row // 10, f"number {row}"])
    return tmp_path / "flowers.csv"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 60 small pictures in two classes."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra image")
    rng = np.random.default_rng(0)
    for kind in ("bright", "dark"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(30):
            low = 128 if kind == "bright" else 0
            pixels = rng.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{number}.png")
    return tmp_path / "pictures"


def arrays(*modalities: str, targets: bool = True) -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    inputs = {name: rng.normal(size=(3, 4))[labels] + rng.normal(size=(90, 4)) for name in modalities}
    return Dataset.from_arrays("arrays", inputs, labels if targets else None)


def test_a_table_becomes_a_student_that_predicts(flowers: Path, tmp_path: Path) -> None:
    student = crossdistill.distill(flowers, epochs=20, settings=["data.target=kind"], out=tmp_path / "out")
    assert student.classes == ("iris", "lily", "rose")
    rows = Report.load(tmp_path / "out").rows
    assert [row.method for row in rows] == ["chance", "teacher:large", "kd"]
    assert rows[-1].mean > 0.6
    assert (tmp_path / "out" / "student").is_dir()
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_finished_run_is_not_that_of_files_that_changed(flowers: Path, tmp_path: Path) -> None:
    call = {"epochs": 1, "settings": ["data.target=kind"], "out": tmp_path / "out"}
    crossdistill.distill(flowers, **call)
    crossdistill.distill(flowers, **call, resume=True)
    lines = flowers.read_text().splitlines()
    flowers.write_text("\n".join([*lines[:-1], lines[-1].replace("iris", "rose")]) + "\n")
    with raises(ResumeError, "flowers", "--out"):
        crossdistill.distill(flowers, **call, resume=True)


def test_a_projection_is_of_the_epochs_that_were_picked(flowers: Path) -> None:
    made = pick(flowers, settings=["data.target=kind"], epochs=100).recipe
    whole = forecast(made, Quiet())
    shorter, projected, line = fitted_to(made, whole, whole.seconds / 60 / 2)
    (epochs,) = {stage.epochs for stage in shorter.stages}
    assert 44 <= epochs <= 45
    assert projected.seconds == pytest.approx(epochs / 100 * whole.seconds)
    assert [stage.steps for stage in projected.stages] == [epochs * stage.steps // 100 for stage in whole.stages]
    assert f"{epochs} epochs" in line
    assert "more than" in fitted_to(made, whole, whole.seconds / 60 / 1000)[2]


def test_a_run_of_so_many_minutes_goes_on_with_the_epochs_that_it_picked(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"minutes": 0.02, "epochs": 500, "settings": ["data.target=kind"], "out": tmp_path / "out"}
    crossdistill.distill(flowers, **call)
    before = (tmp_path / "out" / "recipe.yaml").read_text()
    (tmp_path / "out" / "results.json").unlink()
    monkeypatch.setattr("crossdistill.training.one_call.forecast", lambda *_: pytest.fail("times no steps again"))
    crossdistill.distill(flowers, **call, resume=True)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == before
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.parametrize("teachers", [["cifar-resent20"], {"numbers": "mlp"}, {"a b": "mlp"}])
def test_a_wrong_teacher_is_one_sentence(flowers: Path, teachers: object) -> None:
    fact = "cifar-resnet20" if isinstance(teachers, list) else next(iter(teachers))
    with raises(CrossdistillError, fact) as refusal:
        pick(flowers, teachers=teachers, settings=["data.target=kind"])
    assert "pydantic" not in str(refusal.value)


def test_what_was_picked_is_said(flowers: Path) -> None:
    picked = pick(flowers, settings=["data.target=kind", "stages.kd.epochs=7"])
    said = "\n".join(picked.reasons)
    for fact in ("120 rows", "3 classes", "mlp", "large", "kd", "epochs"):
        assert fact in said
    assert picked.recipe.kind == "named"
    assert picked.recipe.stages[-1].epochs == 7


def test_columns_of_a_table_are_settings_of_a_recipe(flowers: Path) -> None:
    settings = [f"data.path={flowers}", "data.inputs.size=[width, height]", "data.target=kind", "data.group=garden"]
    recipe = make("table/kd", [*settings, "epochs=2", "labelled=0.5"], seed=1)
    assert recipe.learner == "size"
    assert isinstance(recipe.student, NetworkConfig)
    assert recipe.student.options == {"features": 2}
    assert {stage.epochs for stage in recipe.stages} == {2}
    assert recipe.seed == 1
    assert make(f"{flowers}/kd", ["epochs=2", "data.target=kind"]).learner == "numbers"


def test_a_short_column_and_its_settings_go_together(flowers: Path) -> None:
    settings = [f"data.path={flowers}", "data.inputs.note=note", "data.inputs.note.length=16", "data.target=kind"]
    recipe = make("table/supervised", settings)
    assert isinstance(recipe.student, NetworkConfig)
    assert (recipe.student.model, recipe.student.options["vocabulary"]) == ("text-cnn", 257)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["data.target=kin"], ("kin", "kind")),
        (["data.targt=kind"], ("targt", "target")),
        (["student=mpl", "data.target=kind"], ("mpl", "mlp")),
        (["labelled=2", "data.target=kind"], ("labelled", "1")),
        (["epocs=2", "data.target=kind"], ("epocs", "epochs")),
        (["teachers.big=cifar-resnet", "data.target=kind"], ("cifar-resnet",)),
        ([], ("no labels", "data.target")),
    ],
)
def test_wrong_settings_of_a_table_name_what_was_meant(
    flowers: Path, settings: list[str], facts: tuple[str, ...]
) -> None:
    with raises((SettingError, RecipeError, DataError), *facts):
        make("table/kd", [f"data.path={flowers}", *settings])


def test_a_table_without_a_path_says_so() -> None:
    with raises(SettingError, "data.path"):
        make("table/kd", [])
    with raises(SettingError, "kdd", "kd"):
        find("table/kdd")


def test_methods_are_compared_on_a_table(flowers: Path, tmp_path: Path) -> None:
    from crossdistill.compare import Grid, compare

    grid = Grid.parse(str(flowers), methods="supervised,kd", seeds=1, settings=("data.target=kind", "epochs=1"))
    assert grid.students == ("numbers",)
    comparison = compare(grid, tmp_path / "out", jobs=1)
    assert not comparison.findings.failed
    assert {line.title for line in comparison.table.lines} >= {"supervised", "kd (named)"}


def test_a_comparison_refuses_columns_that_a_table_lacks(flowers: Path) -> None:
    from crossdistill.compare import Grid

    with raises(RecipeError, "kin", "kind"):
        Grid.parse(str(flowers), settings=("data.target=kin",))


def test_pictures_in_a_folder_become_a_student(pictures: Path, tmp_path: Path) -> None:
    student = crossdistill.distill(str(pictures), teachers=["cifar-resnet14"], epochs=1, out=tmp_path / "out")
    assert student.classes == ("bright", "dark")
    predictions = student.predict([pictures / "dark" / "0.png", pictures / "bright" / "0.png"])
    assert {one.label for one in predictions} <= {"bright", "dark"}
    assert [row.method for row in Report.load(tmp_path / "out").rows] == ["chance", "teacher:cifar-resnet14", "kd"]


def test_several_modalities_teach_by_routing() -> None:
    picked = pick(arrays("left", "right", "top"), "right")
    assert picked.recipe.method == "mst-distill"
    assert picked.recipe.learner == "right"
    assert list(picked.recipe.teachers) == ["mm", "left", "top"]


def test_data_without_labels_need_a_teacher() -> None:
    with raises(SettingError, "no labels", "teacher"):
        pick(arrays("left", targets=False))
    with raises(SettingError, "data.target"):
        pick(arrays("left", "right", targets=False))


def test_minutes_shorten_the_stages(tmp_path: Path) -> None:
    crossdistill.distill(arrays("left"), minutes=0.02, epochs=2000, out=tmp_path / "out")
    assert "epochs: 2000" not in (tmp_path / "out" / "recipe.yaml").read_text()


def test_own_networks_are_students_and_teachers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = Network(factory=lambda: torch.nn.Linear(4, 3), reads=["left"])
    student = crossdistill.distill(
        arrays("left"), own, teachers={"given": torch.nn.Linear(4, 3)}, epochs=1, out=tmp_path / "out"
    )
    assert student.classes == ("0", "1", "2")


def test_a_frozen_module_teaches_as_it_is(tmp_path: Path) -> None:
    given = torch.nn.Linear(4, 3).requires_grad_(False)
    crossdistill.distill(arrays("left"), teachers={"given": given}, epochs=1, out=tmp_path / "out")
    assert [row.method for row in Report.load(tmp_path / "out").rows] == ["chance", "teacher:given", "kd"]
    assert not list((tmp_path / "out" / "stages").glob("*supervised-given*"))


def test_teachers_of_a_list_have_the_last_part_of_their_names() -> None:
    assert list(named(["timm:resnet18", "transformers:/models/clip/", "cifar-resnet20"])) == [
        "resnet18", "clip", "cifar-resnet20"
    ]  # fmt: skip
    assert len(named(["mlp", "mlp"])) == 2


def test_an_unknown_name_of_data_says_what_can_be_given() -> None:
    with raises(SettingError, "av-digts", "av-digits", "folder"):
        pick("av-digts")
    with raises(SettingError, "av-digts", "ExperimentSetup"):
        setup_by_name("av-digts")


def test_epochs_and_strides_follow_the_size_of_the_data() -> None:
    assert default_epochs(100) > default_epochs(5_000) > default_epochs(100_000)
    spec = crossdistill.InputSpec("image", (3, 128, 128))
    assert default_network("image", spec).options == {"channels": 3, "stride": 4}
    with raises(SettingError, "series", "(7, 9)"):
        default_network("series", crossdistill.InputSpec("array", (7, 9)))


def test_a_folder_with_the_name_of_a_data_set_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av-digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make("av-digits/kd", []).learner == "image"
    assert setup_by_name("av-digits").multimodal is not None


def test_settings_of_a_call_reach_a_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("from tests.compare.test_own_setup import sensors as setup\n")
    monkeypatch.chdir(tmp_path)
    assert {stage.epochs for stage in pick("mine.py:setup", epochs=3).recipe.stages} == {3}
    with raises(SettingError, "lefft", "left"):
        pick("mine.py:setup", "lefft")


def test_few_labels_weigh_the_teacher_more(flowers: Path) -> None:
    few = pick(flowers, settings=["data.target=kind", "data.labelled=0.2"], seed=4).recipe
    assert (
        few.stages[-1].method.alpha
        == make(f"{flowers}/kd", ["labelled=0.2", "data.target=kind"]).stages[-1].method.alpha
    )
    assert few.data.label_seed == 4


def test_each_network_of_a_comparison_is_the_student_of_its_modality(flowers: Path) -> None:
    from crossdistill.compare import Grid

    settings = ("data.inputs.size=[width]", "data.inputs.mass=[weight, height]", "data.target=kind", "epochs=1")
    grid = Grid.parse(str(flowers), methods="kd", seeds=1, settings=(*settings, "student=size"))
    students = {cell.student: cell.recipe().student.options["features"] for cell in grid.cells()}
    assert students == {"size": 1, "mass": 2}
    named = Grid.parse(str(flowers), methods="kd", seeds=1, settings=("data.target=kind", "teachers.tiny=mlp"))
    assert [list(cell.recipe().teachers) for cell in named.cells()] == [["tiny"]]


def test_the_fusion_of_a_users_arrays_has_masks_of_a_sane_size() -> None:
    recipe = pick(arrays("left", "right")).recipe
    widths = [one.get("options", {}).get("width", 128) for one in recipe.teachers["mm"].options["encoders"].values()]
    assert sum(widths) <= 256
