"""The student of a run as a teacher: by its folder, with classes by name, and with the preparation of its own run."""

from pathlib import Path

import pytest
import torch
from command_line import called
from facts import raises, states
from own_files import class_folders

from crossdistill import NetworkConfig, load_student, run
from crossdistill.data.folder import FolderConfig
from crossdistill.errors import RunError, SettingError
from crossdistill.planning.run_teacher import in_order, run_teacher
from crossdistill.recipes import make
from crossdistill.recipes.richkd import with_default_cnn

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of two classes, `pics`, and a run on them, `first`."""
    folder = tmp_path_factory.mktemp("runs")
    class_folders(folder / "pics", each=52)
    run(make("folder/supervised", [f"data.path={folder / 'pics'}", "epochs=1"], 0), folder / "first")
    return folder


def test_a_folder_of_a_run_is_a_name(runs: Path) -> None:
    assert NetworkConfig.model_validate(str(runs / "first")).model == f"run:{runs / 'first'}"
    settings = [f"data.path={runs / 'pics'}", f"teachers.cnn={runs / 'first'}", f"teachers.clip=run:{runs / 'first'}"]
    made = make("folder/richkd-l", settings, 0)
    assert {name: teacher.modalities for name, teacher in made.teachers.items()} == {"cnn": (), "clip": ()}
    assert with_default_cnn("richkd", {"clip": "x"}) == {"cnn": "cifar-resnet20", "clip": "x"}
    assert with_default_cnn("kd", {"clip": "x"}) == {"clip": "x"}


def test_its_outputs_are_those_of_its_student(runs: Path) -> None:
    data = FolderConfig(path=runs / "pics").load()
    built = run_teacher(str(runs / "first"), "cnn", None, data)
    batch = data.batch(data.splits["validation"])
    assert built.network.reads == ("image",)
    assert not any(one.requires_grad for one in built.network.parameters())
    wanted = load_student(runs / "first").logits({"image": torch.as_tensor(batch.inputs["image"])})
    torch.testing.assert_close(built.network.eval()(batch).logits, wanted)


def test_classes_are_compared_by_name(runs: Path) -> None:
    class_folders(runs / "others", ("cat", "bird"), each=8)
    with raises(SettingError, "run:", "bird"):
        run_teacher(str(runs / "first"), "cnn", None, FolderConfig(path=runs / "others").load())
    with raises(RunError, "pics"):
        run_teacher(str(runs / "pics"), "cnn", None, FolderConfig(path=runs / "pics").load())
    logits = torch.arange(6.0).view(2, 3)
    assert in_order({"logits": logits}, (2, 0))["logits"].tolist() == [[2, 0], [5, 3]]
    assert in_order(logits, (1,))["logits"].tolist() == [[1], [4]]


def test_data_of_another_preparation_are_read_as_in_its_run(runs: Path) -> None:
    class_folders(runs / "larger", each=8)
    data = FolderConfig(path=runs / "larger", size=(16, 16))
    network = run_teacher(str(runs / "first"), "cnn", None, data.load()).network
    assert network.reads == ("image@cnn",)


def test_from_the_command_line(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["folder/richkd-l", "--set", f"data.path={runs / 'pics'}", "--set", f"teachers.cnn={runs / 'first'}"]
    alone = called("run", *words, "--out", runs / "alone", capsys=capsys, monkeypatch=monkeypatch)
    states(alone.complaint(), "cnn", "teachers.clip=transformers:FOLDER")
    words += ["--set", f"teachers.clip=run:{runs / 'first'}", "--set", "epochs=1"]
    tuned = called("tune-fusion", *words, "--out", runs / "tuned", capsys=capsys, monkeypatch=monkeypatch)
    assert tuned.status == 0, tuned.err
    assert "--set stages.richkd-l.method.alpha=" in tuned.out
    done = called("run", *words, "--out", runs / "tuned", capsys=capsys, monkeypatch=monkeypatch)
    assert done.status == 0, done.err
    again = called("tune-fusion", runs / "tuned", "--json", capsys=capsys, monkeypatch=monkeypatch)
    assert again.status == 0, again.err
    states(again.out, '"settings"', '"held_out"')
