"""`data.name=table` and `folder`: files, texts and numbers of a table; guesses, splits, and every kind of bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_files import class_folders, picture_rows, write_picture, write_sound, write_table

from crossdistill.data.folder import FolderConfig
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


def test_folders_of_classes_of_splits_and_without(tmp_path: Path) -> None:
    plain = FolderConfig(path=class_folders(tmp_path / "plain")).load()
    assert plain.classes == ("cat", "dog")
    class_folders(tmp_path / "split" / "train")
    class_folders(tmp_path / "split" / "val", each=2)
    class_folders(tmp_path / "split" / "test", each=2)
    split = FolderConfig(path=tmp_path / "split").load()
    assert [len(rows) for rows in split.splits.values()] == [12, 4, 4]
    for number in range(6):
        write_picture(tmp_path / "flat" / f"{number}.png", number)
    (tmp_path / "flat" / "notes.md").write_text("x")
    flat = FolderConfig(path=tmp_path / "flat").load()
    assert flat.targets.tolist() == [-100] * 6
    assert "1 other files" in flat.how_split


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _bad_pictures(folder: Path) -> dict[str, Any]:
    rows = picture_rows(folder)
    _damage(folder / rows[2]["file"])
    rows[3]["file"] = "p/none.png"
    return {"rows": rows}


def _changed(row: int, **cells: Any) -> Callable[[Path], dict[str, Any]]:
    def made(folder: Path) -> dict[str, Any]:
        rows = picture_rows(folder)
        rows[row] |= cells
        return {"rows": rows}

    return made


def _set(**settings: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"rows": picture_rows(folder), **settings}


def _file(name: str, content: bytes | str) -> Callable[[Path], dict[str, Any]]:
    def made(folder: Path) -> dict[str, Any]:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"path": path}

    return made


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = {
    "no path": (lambda _: {"path": None}, ("data.path",)),
    "no file": (lambda folder: {"path": folder / "none.csv"}, ("none.csv",)),
    "another format": (_file("t.xlsx", "x"), (".xlsx", "csv")),
    "a pickle": (_file("t.pkl", "x"), (".pkl", "code")),
    "an empty file": (_file("t.csv", ""), ("empty",)),
    "blank lines alone": (_file("t.csv", "\n\n"), ("empty",)),
    "a header alone": (_file("t.csv", "file,label\n"), ("'file'", "no row")),
    "another encoding": (
        _file("t.csv", "file,label\na.png,caf\xe9\n".encode("latin-1")),
        ("0xe9", "line 2", "latin-1"),
    ),
    "UTF-16": (_file("t.csv", "file,label\n".encode("utf-16")), ("utf-16",)),
    "an unknown encoding": (_set(encoding="utf-99"), ("utf-99",)),
    "a column twice": (_file("t.csv", "a,a\n1,2\n"), ("'a'",)),
    "ragged lines": (_file("t.csv", "a,b\n1,2\n1,2,3\n4\n"), ("line 3 has 3", "line 4 has 1", "2 column")),
    "an open quote": (_file("t.csv", 'a,b\n"1,2\n'), ("line", "quote")),
    "no JSON": (_file("t.jsonl", '{"a": 1}\n{a}\n'), ("line 2", "JSON")),
    "no object": (_file("t.jsonl", "[1]\n"), ("line 1", "list")),
    "no such target": (_set(target="lable"), ("data.target", "'lable'", "'label'")),
    "no such columns": (
        _set(inputs={"image": "fil"}, group="takr"),
        ("2 faults", "data.inputs.image", "'fil'", "'file'", "data.group", "'taker'"),
    ),
    "an input without a column": (_set(inputs={"image": {"size": [8, 8]}}), ("data.inputs.image", "file, label")),
    "nothing that is an input": (_file("t.csv", "label\na\nb\n"), ("label", "input")),
    "broken and missing files": (
        _bad_pictures,
        ("2 of 12", "line 4", "02.png", "truncated", "line 5", "none.png", "skip"),
    ),
    "a file outside the folder": (_changed(1, file="../x.png"), ("outside", "line 3", "../x.png", "data.files")),
    "a file elsewhere": (_changed(1, file="/etc/x.png"), ("outside", "line 3", "/etc/x.png")),
    "a file twice": (_changed(4, file="p/02.png"), ("twice", "line 6", "line 4")),
    "files of two kinds": (_changed(1, file="p/1.wav"), ("11 pictures", "1 recordings", "line 3", "p/1.wav")),
    "files of another kind": (
        lambda folder: {
            **_changed(1, file="p/1.txt")(folder),
            "inputs": {"image": {"column": "file", "type": "image"}},
        },
        ("line 3", "p/1.txt", "suffix"),
    ),
    "torch files": (
        lambda folder: {"rows": [{"file": f"{n}.pt", "label": "a"} for n in range(4)]},
        (".pt", "numpy.save"),
    ),
    "npz files": (lambda folder: {"rows": [{"file": f"{n}.npz", "label": "a"} for n in range(4)]}, (".npz", ".npy")),
    "a text among numbers": (
        lambda folder: {**_changed(4, age="old")(folder), "inputs": {"numbers": "age"}},
        ("'age'", "line 6", "'old'"),
    ),
    "a number that is missing": (
        lambda folder: {**_changed(4, age="")(folder), "inputs": {"numbers": ["age", "other"]}, "other": 1},
        ("1 of 12", "line 6", "'age'", "nothing"),
    ),
    "a number that is not finite": (
        lambda folder: {**_changed(4, age="nan")(folder), "inputs": {"numbers": {"column": "age", "type": "numbers"}}},
        ("line 6", "'age'", "nan"),
    ),
    "texts among several columns": (_set(inputs={"numbers": ["age", "taker"]}), ("'taker'", "text")),
    "an empty column": (_file("t.csv", "file,x\n,1\n,2\n,3\n"), ("'file'", "empty")),
    "no input in a row": (
        lambda folder: {**_changed(4, file="")(folder), "inputs": {"image": "file"}},
        ("line 6", "no input"),
    ),
    "a group that is missing": (lambda f: {**_changed(4, taker="")(f), "group": "taker"}, ("'taker'", "line 6")),
    "a domain that is missing": (lambda f: {**_changed(4, taker="")(f), "domain": "taker"}, ("data.domain", "line 6")),
    "an id twice": (_set(id="taker"), ("data.id", "'t0'")),
    "no split of that name": (
        lambda f: {**_changed(4, taker="trian")(f), "split": "taker"},
        ("'taker'", "names no split"),
    ),
    "a split without test rows": (
        lambda f: {"rows": [{**row, "split": "train"} for row in picture_rows(f)]},
        ("'split'", "no row for test"),
    ),
    "an id in no row": (
        lambda f: {
            "rows": [{**row, "id": f"n{n}"} for n, row in enumerate(picture_rows(f))],
            "id": "id",
            "splits": {"train": ["n0"], "validation": ["n1"], "test": ["m2"]},
        },
        ("data.splits.test", "'m2'", "'n2'"),
    ),
    "lists without ids": (_set(splits={"train": ["a"]}), ("data.splits", "data.id")),
    "more folds than groups": (_set(group="taker", folds=5), ("'taker'", "4 blocks", "5 folds")),
    "a class that is not listed": (_set(classes=("cat", "cow")), ("'dog'", "cat, cow")),
    "a target that differs everywhere": (
        lambda f: {"rows": picture_rows(f, 24), "target": "file", "inputs": {"numbers": "age"}},
        ("'file'", "every line", "data.target"),
    ),
    "a target that is empty": (
        lambda f: {"rows": [{**row, "label": ""} for row in picture_rows(f)]},
        ("'label'", "unlabelled"),
    ),
    "an array file that is short": (_set(inputs={"array": {"file": "short.npy"}}), ("short.npy", "3 rows", "12")),
    "no array file": (_set(inputs={"array": {"file": "none.npy"}}), ("none.npy",)),
    "a rendering of something else": (
        _set(inputs={"image": {"column": "file", "rendering": {"type": "sound", "rate": 8000}}}),
        ("'sound'", "'image'"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named_before_training(case: str, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    make, facts = BAD[case]
    settings = make(tmp_path)
    rows, other = settings.pop("rows", None), settings.pop("other", None)
    if rows is not None:
        rows = [{**row, "other": other} for row in rows] if other is not None else rows
        settings["path"] = write_table(tmp_path / "t.csv", rows)
    if case == "an empty column":
        settings["inputs"] = {"image": "file"}
    with pytest.raises(DataError) as caught:
        TableConfig.model_validate(settings).load()
    for fact in facts:
        assert fact in str(caught.value), str(caught.value)


def test_all_faults_are_collected(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path)
    rows[3]["age"] = "x"
    rows[4]["taker"] = ""
    _damage(tmp_path / rows[1]["file"])
    path = write_table(tmp_path / "t.csv", rows)
    settings = {"image": "file", "numbers": {"column": "age", "type": "numbers"}}
    with pytest.raises(DataError, match="3 faults"):
        TableConfig.model_validate({"path": path, "inputs": settings, "group": "taker"}).load()


def test_bad_rows_are_skipped_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = _bad_pictures(tmp_path)["rows"]
    rows.append(dict(rows[6]))
    np.save(tmp_path / "all.npy", np.arange(26, dtype=np.float32).reshape(13, 2))
    path = write_table(tmp_path / "t.csv", rows)
    inputs = {"image": "file", "array": {"file": "all.npy"}}
    data = TableConfig.model_validate({"path": path, "on_bad": "skip", "inputs": inputs}).load()
    assert len(data) == 10
    assert data.inputs["array"][:, 0].tolist() == [0, 2, *range(8, 24, 2)]
    text = caplog.text
    assert "3 of 13" in text
    assert re.search(r"line 4: .*02\.png", text)
    assert re.search(r"line 14: .*line 8", text)


FOLDERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "no folder": (lambda f: f / "none", ("none", "no such folder")),
    "a file": (lambda f: write_picture(f / "a.png", 0), ("a.png", "table")),
    "an empty folder": (lambda f: (f / "x").mkdir() or f / "x", ("no pictures", "empty")),
    "other files": (lambda f: (f / "a.doc").write_text("x") and f, ("no pictures", ".doc")),
    "files beside classes": (
        lambda f: write_picture(class_folders(f) / "z.png", 50).parent,
        ("1 files", "z.png", "cat, dog"),
    ),
    "two kinds": (
        lambda f: (class_folders(f) / "cat" / "x.wav").write_text("") or f,
        ("12 pictures", "1 recordings", "data.type"),
    ),
    "a broken file": (lambda f: _damage(class_folders(f) / "dog" / "003.png") or f, ("1 of 12", "dog/003.png")),
    "two pictures": (lambda f: class_folders(f, ("a", "b"), 1), ("2 rows",)),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders_are_named_before_training(case: str, tmp_path: Path) -> None:
    make, facts = FOLDERS[case]
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        FolderConfig(path=make(folder)).load()
    for fact in facts:
        assert fact in str(caught.value), str(caught.value)


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
