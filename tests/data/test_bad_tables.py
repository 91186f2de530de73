"""Every kind of bad table is one sentence before training; bad rows can be left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_files import damage, picture_rows, write_table

from crossdistill.data.table import TableConfig
from crossdistill.errors import DataError

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


def _bad_pictures(folder: Path) -> dict[str, Any]:
    rows = picture_rows(folder)
    damage(folder / rows[2]["file"])
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
    "settings of recordings for pictures": (
        _set(inputs={"image": {"column": "file", "seconds": 2.0, "kind": "wave"}}),
        ("data.inputs.image", "seconds, kind", "'image'"),
    ),
    "a size beside a rendering": (
        _set(inputs={"image": {"column": "file", "size": [8, 8], "rendering": {"type": "picture", "size": [8, 8]}}}),
        ("data.inputs.image", "size", "rendering"),
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
    "a target that is a list": (
        _file("t.jsonl", '{"x": 1, "label": "a"}\n{"x": 2, "label": ["a", "b"]}\n'),
        ("'label'", "list", "line 2"),
    ),
    "a column of lists": (
        lambda f: {**_file("t.jsonl", '{"x": [1], "label": "a"}\n')(f), "inputs": {"array": "x"}},
        ("'x'", "list"),
    ),
    "a target that is empty": (
        lambda f: {"rows": [{**row, "label": ""} for row in picture_rows(f)]},
        ("'label'", "unlabelled"),
    ),
    "an array file that is short": (_set(inputs={"array": {"file": "short.npy"}}), ("short.npy", "3 rows", "12")),
    "an array file that is long": (_set(inputs={"array": {"file": "long.npy"}}), ("long.npy", "13 rows", "12")),
    "a target that is an input": (
        _set(inputs={"image": "file", "x": ["age", "label"]}, target="label"),
        ("data.inputs.x", "data.target", "'label'"),
    ),
    "other columns that are inputs": (
        _set(inputs={"x": ["age"], "text": "taker"}, group="taker", id="age", domain="taker"),
        (
            "3 faults",
            "data.inputs.x and data.id",
            "data.inputs.text and data.group",
            "data.inputs.text and data.domain",
        ),
    ),
    "ids and labels alone": (
        _file("t.csv", "id,label\n" + "".join(f"{n},{n % 2}\n" for n in range(12))),
        ("no column looks like an input", "(id: by their names ids"),
    ),
    "no array file": (_set(inputs={"array": {"file": "none.npy"}}), ("none.npy",)),
    "a rendering of something else": (
        _set(inputs={"image": {"column": "file", "rendering": {"type": "sound", "rate": 8000}}}),
        ("'sound'", "'image'"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named_before_training(case: str, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    np.save(tmp_path / "long.npy", np.zeros((13, 2)))
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
    damage(tmp_path / rows[1]["file"])
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
