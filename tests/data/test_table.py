"""`data.name=table` and `folder`: files, texts and numbers of a table; guesses, splits, renderings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_files import class_folders, picture_rows, write_picture, write_sound, write_table

from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.data.dataset import Dataset
from crossdistill.data.folder import FolderConfig
from crossdistill.data.rendered import rendered
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.table import TableConfig
from crossdistill.errors import CrossdistillError, DataError, MissingExtraError
from crossdistill.overrides import overridden

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


def test_a_table_of_pictures_is_guessed_and_said(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", picture_rows(tmp_path))
    data = TableConfig(path=path).load()
    assert data.classes == ("cat", "dog")
    assert data.inputs["image"].shape == (12, 3, 12, 12)
    for said in ("'label'", "image = file", "3 x 12 x 12", "by class"):
        assert said in data.how_split
    batch = data.batch(torch.tensor([3, 0]))
    rendering = data.inputs["image"].rendering
    assert isinstance(rendering, PictureRendering)
    assert rendering.size == (12, 12)
    train = data.batch(data.splits["train"]).inputs["image"]
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=2e-3)
    assert torch.allclose(train.std((0, 2, 3), correction=0), torch.ones(3), atol=2e-3)
    assert batch.targets.tolist() == [1, 0]
    again = TableConfig(path=path).load()
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.batch(torch.tensor([3, 0])).inputs["image"], batch.inputs["image"])
    write_picture(tmp_path / "p" / "03.png", 77)
    with pytest.raises(DataError, match=r"03\.png"):
        data.check_unchanged()
    assert TableConfig(path=path).load().fingerprint != data.fingerprint


def test_settings_are_given_on_the_command_line() -> None:
    config = TableConfig()
    for text, value in (
        ("inputs.image", "file"),
        ("inputs.sound.column", "clip"),
        ("inputs.sound.rate", 8000),
        ("inputs.numbers", ["age", "taker"]),
        ("group", "taker"),
    ):
        config = overridden(config, text, value)
    assert config.inputs["image"].column == "file"
    assert (config.inputs["sound"].column, config.inputs["sound"].rate) == ("clip", 8000)
    assert config.inputs["numbers"].columns == ("age", "taker")
    assert config.group == ("taker",)
    assert TableConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_a_table_of_several_modalities_with_gaps(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="pip install 'crossdistill[audio]'")
    rows = picture_rows(tmp_path)
    for number, row in enumerate(rows):
        row["clip"] = str(write_sound(tmp_path / f"{number}.wav", number, channels=1 + number % 2))
        row["text"] = f"picture of a {row['label']}"
        np.save(tmp_path / f"{number}.npy", np.full((2, 3), number, np.float64))
        row["array"] = f"{number}.npy"
    rows[4]["clip"] = rows[5]["file"] = rows[6]["label"] = ""
    np.save(tmp_path / "all.npy", np.arange(24, dtype=np.float32).reshape(12, 2))
    config = TableConfig.model_validate(
        {
            "path": write_table(tmp_path / "t.tsv", rows, "\t"),
            "inputs": {
                "image": {"column": "file", "size": [8, 8], "channels": 1},
                "sound": {"column": "clip", "rate": 8000, "seconds": 0.2},
                "wave": {"column": "clip", "rate": 8000, "kind": "wave", "seconds": 0.1},
                "text": {"column": "text", "length": 12},
                "array": "array",
                "whole": {"file": "all.npy"},
                "numbers": ["age"],
            },
            "group": "taker",
        }
    )
    data = config.load()
    batch = data.batch(torch.tensor([4, 5, 6, 7]))
    shapes = {name: tuple(value.shape[1:]) for name, value in batch.inputs.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "image": (1, 8, 8),
        "sound": (1, 64, 13),
        "wave": (800,),
        "array": (2, 3),
        "whole": (2,),
        "numbers": (1,),
    }
    assert batch.inputs["text"]["input_ids"].shape == (4, 12)
    assert batch.present["sound"].tolist() == [False, True, True, True]
    assert batch.present["image"].tolist() == [True, False, True, True]
    assert batch.targets.tolist() == [0, 1, -100, 1]
    takers = [row["taker"] for row in rows]
    splits = [{takers[row] for row in rows.tolist()} for rows in data.splits.values()]
    assert not splits[0] & splits[1]
    assert not splits[0] & splits[2]
    clip = data.inputs["image"].rendered(PictureRendering(size=(6, 6)))
    assert clip.fetch(torch.tensor([0])).shape == (1, 3, 6, 6)


def test_several_renderings_decode_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdistill.data import file_source

    source = FolderConfig(path=class_folders(tmp_path / "d")).load().inputs["image"]
    small, decoded = source.rendered(PictureRendering(size=(6, 6))), []
    decode = file_source.decode_picture
    monkeypatch.setattr(file_source, "decode_picture", lambda path: decoded.append(path) or decode(path))
    rows = torch.tensor([2, 7, 2])
    assert source.fetch(rows).shape == (3, 3, 12, 12)
    assert small.fetch(rows).shape == (3, 3, 6, 6)
    assert len(decoded) == 3
    assert small.fingerprint != source.fingerprint


def test_renderings_of_files_have_the_views_of_their_modality(tmp_path: Path) -> None:
    changes = {"inputs": {"image": {"flip": True, "shift": [0, 3, 3]}}, "views": 8}
    config = FolderConfig.model_validate({"path": class_folders(tmp_path / "d"), "augmentation": changes})
    plain = config.load()
    same = plain.inputs["image"].rendering
    data = rendered(plain, {"image@twice": same.model_copy(update={"size": (24, 24)}), "image@same": same}, "test")
    rows = torch.arange(12)
    batch = data.batch(rows, view=1 + rows % 8).inputs
    assert torch.equal(batch["image"], batch["image@same"])
    # Stored outputs of one network fit data that other networks read in other renderings, or none.
    assert plain.augmentation is not None
    assert data.augmentation is not None
    assert data.augmentation.key == plain.augmentation.key
    assert not torch.equal(batch["image"], data.batch(rows).inputs["image"])
    halved = torch.nn.functional.avg_pool2d(batch["image@twice"], 2)
    assert torch.corrcoef(torch.stack([halved.flatten(), batch["image"].flatten()]))[0, 1] > 0.9


def test_copies_and_gaps_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = picture_rows(tmp_path)
    for number, row in enumerate(rows):
        row |= {"label": number % 3 * 2, "split": ("train", "val", "test")[number % 3]}
    (tmp_path / rows[5]["file"]).write_bytes((tmp_path / rows[3]["file"]).read_bytes())
    data = TableConfig(path=write_table(tmp_path / "t.csv", rows)).load()
    assert data.classes == ("0", "2", "4")
    assert "1, 3" in data.how_split
    for said in ("1 files", "two splits", "two classes", "03.png", "05.png"):
        assert said in caplog.text


def test_equal_texts_in_two_splits_or_classes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"review number {n}", "label": n % 2, "split": ("train", "val", "test")[n % 3]} for n in range(24)]
    path = write_table(tmp_path / "t.csv", rows)
    TableConfig(path=path).load()
    assert "texts" not in caplog.text
    rows[5]["text"] = rows[0]["text"]
    TableConfig(path=write_table(tmp_path / "t.csv", rows)).load()
    for said in ("1 texts", "two splits", "new texts", "two classes", "review number 0"):
        assert said in caplog.text


def test_rows_of_one_array_file_are_those_of_the_whole_table(tmp_path: Path) -> None:
    count = 300
    rows = [{"number": n, "label": n % 3} for n in range(count)]
    np.save(tmp_path / "all.npy", np.arange(count * 2, dtype=np.float32).reshape(count, 2))
    numbers = {"column": "number", "normalise": False}
    inputs = {"number": numbers, "whole": {"file": "all.npy"}}
    path = write_table(tmp_path / "t.csv", rows)
    config = TableConfig.model_validate({"path": path, "inputs": inputs})
    for few, wanted in ((config.model_copy(update={"rows": 60}), 60), (config.tiny(), 240), (config, count)):
        data = few.load()
        assert len(data) == wanted
        assert torch.equal(data.inputs["whole"][:, 0], data.inputs["number"][:, 0] * 2)
        assert torch.equal(data.targets, (data.inputs["number"][:, 0] % 3).long())
    np.save(tmp_path / "all.npy", np.zeros((60, 2), np.float32))
    with pytest.raises(DataError, match=r"all\.npy has 60 rows, and the table 300"):
        config.model_copy(update={"rows": 60}).load()
    np.save(tmp_path / "all.npy", np.arange(count * 2, dtype=np.float32).reshape(count, 2))
    rows[7]["number"] = "x"
    write_table(tmp_path / "t.csv", rows)
    bad = {"number": {**numbers, "type": "numbers"}, "whole": {"file": "all.npy"}}
    data = TableConfig.model_validate({"path": path, "inputs": bad, "on_bad": "skip", "rows": 299}).load()
    assert torch.equal(data.inputs["whole"][:, 0], data.inputs["number"][:, 0] * 2)


def test_jsonl_and_semicolons_are_read(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path)
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    comma = TableConfig(path=write_table(tmp_path / "t.csv", rows)).load()
    for path in (lines, write_table(tmp_path / "t.csv", rows, ";")):
        data = TableConfig(path=path).load()
        assert data.fingerprint == comma.fingerprint


def test_numbers_alone_are_one_input(tmp_path: Path) -> None:
    rows = [{"a": n, "b": f"{n * n}", "class": n % 3 + 7} for n in range(30)]
    data = TableConfig(path=write_table(tmp_path / "t.csv", rows), folds=3, fold=1).load()
    assert data.classes == ("7", "8", "9")
    assert data.inputs["numbers"].shape == (30, 2)
    assert data.input_specs["numbers"].options["rendering"]["type"] == "array"
    assert torch.allclose(data.inputs["numbers"][data.splits["train"]].mean(0), torch.zeros(2), atol=1e-4)
    assert [len(rows) for rows in data.splits.values()] == [10, 10, 10]
    others = [TableConfig(path=tmp_path / "t.csv", folds=3, fold=n).load().splits["test"].tolist() for n in (0, 2)]
    assert sorted([*others[0], *others[1], *data.splits["test"].tolist()]) == list(range(30))


def test_ids_and_labels_are_no_guessed_numbers(tmp_path: Path) -> None:
    left_out = ("ID", "", "Unnamed: 0", "user_id", "row", "category", "cls", "y", "fold")
    rows = [{**dict.fromkeys(left_out, n % 5), "a": n, "b": n / 4, "label": n % 3} for n in range(30)]
    data = TableConfig(path=write_table(tmp_path / "t.csv", rows)).load()
    assert data.inputs["numbers"].shape == (30, 2)
    for said in ("numbers = [a, b]", "ID, '', Unnamed: 0, user_id", "and 1 more"):
        assert said in data.how_split
    data = TableConfig(path=tmp_path / "t.csv", unlabelled=True).load()
    assert data.inputs["numbers"].shape == (30, 2)
    named = TableConfig.model_validate({"path": tmp_path / "t.csv", "inputs": {"x": ["ID", "a"]}})
    assert named.load().inputs["x"].shape == (30, 2)
    wide = [{**{f"f{i}": n * i for i in range(11)}, "fold": n / 8, "label": n % 3} for n in range(30)]
    said = TableConfig(path=write_table(tmp_path / "w.csv", wide)).load().how_split
    assert "numbers = [f0, f1, f2, f3, f4, f5, f6, f7 and 4 more]" in said
    assert "no inputs" not in said


def test_targets_of_every_kind_are_guessed_or_set(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 20)
    for n, row in enumerate(rows):
        row |= {
            "price": f"{n * 1.5}" if n != 3 else "",
            "red": n % 2,
            "big": int(n > 9),
            "tags": "red; big" if n % 3 else "red",
        }
    path = write_table(tmp_path / "t.csv", rows)

    def load(**settings: Any) -> Dataset:
        return TableConfig.model_validate({"path": path, "inputs": {"image": "file"}, **settings}).load()

    price = load(target="price")
    assert (price.task, price.classes) == ("regression", ("price",))
    assert "regression" in price.how_split
    assert price.targets[3].isnan().all()
    assert price.targets[4].item() == 6
    labels = load(target=["red", "big"])
    assert (labels.task, labels.classes) == ("multi-label", ("red", "big"))
    tags = load(target="tags", task="multi-label")
    assert tags.classes == ("big", "red")
    assert tags.targets[:2].tolist() == [[0, 1], [1, 1]]
    assert load(target="red").task == "classes"
    assert load(target="age", task="regression", folds=4).targets.shape == (20, 1)
    assert load(unlabelled=True).targets.tolist() == [-100] * 20
    for settings, facts in (
        ({"target": ["red", "big"], "task": "classes"}, ("2 columns", "data.task")),
        ({"target": "label", "task": "regression"}, ("'label'", "'cat'", "lines 2", "numbers")),
    ):
        with pytest.raises(DataError) as caught:
            load(**settings)
        assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_splits_by_column_and_by_ids(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 16)
    for n, row in enumerate(rows):
        row |= {"split": "test" if n >= 12 else "training", "name": f"n{n}"}
    path = write_table(tmp_path / "t.csv", rows)
    data = TableConfig(path=path).load()
    assert data.splits["test"].tolist() == [12, 13, 14, 15]
    assert len(data.splits["validation"]) == 3
    assert "none for validation" in data.how_split
    wanted = {"train": ["n0", "n1"], "validation": ["n2", "n3"], "test": ["n5", "n4"]}
    data = TableConfig.model_validate({"path": path, "id": "name", "splits": wanted}).load()
    assert data.splits["test"].tolist() == [5, 4]
    assert len(TableConfig(path=path).tiny().model_copy(update={"rows": 8}).load()) == 8


def test_parquet_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install 'crossdistill[parquet]'")
    from pyarrow import parquet

    rows = picture_rows(tmp_path)
    path = tmp_path / "t.parquet"
    parquet.write_table(arrow.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    comma = TableConfig(path=write_table(tmp_path / "t.csv", rows)).load()
    assert TableConfig(path=path).load().fingerprint == comma.fingerprint


def test_sound_of_other_files_is_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="pip install 'crossdistill[video]'")
    path, rate = tmp_path / "a.m4a", 16000
    wave = 0.3 * np.sin(2 * np.pi * 500 * np.arange(rate) / rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), format="fltp", layout="stereo")
        frame.rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    found, found_rate = decode_sound(path)
    assert found_rate == rate
    assert np.argmax(np.abs(np.fft.rfft(found[2000:14000]))) * rate / 12000 == pytest.approx(500, abs=2)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"a\.m4a"):
        decode_sound(path)


def test_without_a_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, suffix, extra in (("av", "m4a", "video"), ("PIL", "png", "image")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        folder = tmp_path / suffix
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            (folder / name / f"x.{suffix}").write_text("x")
        with pytest.raises(MissingExtraError, match=extra):
            FolderConfig(path=folder).load()
    path = tmp_path / "t.parquet"
    path.write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CrossdistillError, match=r"crossdistill\[parquet\]"):
        TableConfig(path=path).load()
