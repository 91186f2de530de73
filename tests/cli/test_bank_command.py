"""`crossdistill bank` on real folders: filling ahead of a run, listing, checking, clearing by age and size."""

import inspect
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises, states
from typer.testing import CliRunner, Result

from crossdistill.backends.bank_file import BankFile, read_bank_file, write_bank_file
from crossdistill.bank.bank import Bank, BankKey
from crossdistill.bank.fill import fill
from crossdistill.bank.folder import BankEntry, find_banks, remove, to_prune
from crossdistill.bank.rows import BankRows
from crossdistill.cli.bank import bank
from crossdistill.errors import BankDamaged, BankMissing, SettingError
from crossdistill.runtime.files import ABANDONED_S

IDS = torch.arange(300)
RECIPE = """
from crossdistill.methods import KD, Route, Specialise, Supervised
from crossdistill.recipe import Recipe
from crossdistill.stage import Stage
from crossdistill.testing import toy_dataset
from crossdistill.testing.toy import toy_models

def taught():
    data = toy_dataset()
    cast = toy_models(data)
    student = cast.pop("student-network")
    stages = [
        Stage(method=KD(), epochs=3),
        Stage(method=Supervised(), learner="teacher-0", epochs=1),
        Stage(name="again", method=KD(), epochs=3),
    ]
    return Recipe(data=data, student=student, student_name="pupil", teachers=cast, stages=stages)
"""


def call(*words: str) -> Result:
    # Before click 8.2 an argument keeps stderr out of stdout.
    arguments = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner.__init__).parameters else {}
    return CliRunner(**arguments).invoke(bank, [*words])


def good(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.exception
    return str(result.stdout)


def make(folder: Path, name: str, rows: int = 300, idle_s: float = 0.0) -> Path:
    key = BankKey(weights=name, data="d", rows=BankRows(IDS[:rows]).key, want="logits", shape=(4,))
    made = Bank.create(folder, key, BankRows(IDS[:rows]), {"source": name})
    fill({"a": made}, lambda ids, _: {"a": (torch.rand(len(ids), 4), None)}, lambda: None, lambda text: None)
    os.utime(made.path / "bank.json", (time.time() - idle_s,) * 2)
    return made.path


def test_filling_goes_as_far_as_networks_are_final(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(RECIPE)
    said = good("fill", f"{file}:taught", "--out", str(out))
    assert said == "to be trained first: supervised-teacher-0, again\n"
    assert {path.parent for path in find_banks(out)} == {out / "banks"}
    before = {path: (path / "values.npy").stat().st_mtime_ns for path in find_banks(out)}
    assert len(before) == 2
    good("fill", f"{file}:taught", "--out", str(out))
    assert {path: (path / "values.npy").stat().st_mtime_ns for path in find_banks(out)} == before, "not filled again"


def test_a_bank_is_exported_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    mine, out, file = tmp_path / "mine.py", tmp_path / "out", tmp_path / "given.safetensors"
    mine.write_text(RECIPE)
    good("fill", f"{mine}:taught", "--out", str(out))
    options = ["--recipe", f"{mine}:taught", "--to", str(file), "--teacher", "teacher-1"]
    said = good("export", str(out), *options, "--dtype", "int8", "--top", "2")
    states(said, file, "teacher-1", "int8", "KL", "toy")
    about = json.loads(good("import", str(file), "--name", "small", "--json"))
    assert [one["logits"] for one in about["teachers"]] == [{"dtype": "int8", "top": 2}]
    assert about["bytes"] == Path(about["path"]).stat().st_size
    assert "--set teachers.teacher-1=bank:given" in good("import", str(file))
    result = call("export", str(out), *options, "--dtype", "int4")
    assert isinstance(result.exception, SettingError)
    states(result.exception, "'int4'", "'int8'")
    # A file from elsewhere names its teacher as it likes.
    (stored,) = read_bank_file(file)
    hostile = stored.info.teacher.model_copy(update={"model": "net\x1b[2J\u202e"})
    write_bank_file(file, [BankFile(stored.info.model_copy(update={"teacher": hostile}), stored.tensors)])
    said = good("import", str(file), "--name", "hostile")
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_filling_needs_a_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    result = call("fill", f"{tmp_path / 'mine.py'}:taught")
    assert isinstance(result.exception, SettingError)
    states(result.exception, "--out DIR", "--banks DIR", "--share DIR")


def test_listing(tmp_path: Path) -> None:
    make(tmp_path / "banks", "small", 100, idle_s=3 * 86400)
    make(tmp_path / "banks", "large", 300)
    text = good("list", str(tmp_path))
    lines = text.splitlines()
    assert "large logits, 300 rows, float32" in lines[0]
    assert "used     3 d ago" in lines[1]
    assert lines[2].startswith("2 banks, ")
    rows = json.loads(good("list", str(tmp_path), "--json"))
    assert sorted(row["source"] for row in rows) == ["large", "small"]
    assert any(abs(row["idle_s"] - 3 * 86400) < 100 for row in rows), "listing is no use"


def test_a_bank_that_is_not_filled_says_so(tmp_path: Path) -> None:
    key = BankKey(weights="x", data="d", rows=BankRows(IDS).key, want="logits", shape=(4,))
    Bank.create(tmp_path, key, BankRows(IDS), {"source": "teacher"})
    assert "0 of 2 blocks filled" in good("list", str(tmp_path))
    assert "0 of 2 blocks are filled" in good("check", str(tmp_path))


def test_checking_reads_every_value(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    make(tmp_path, "two")
    assert good("check", str(tmp_path)).endswith("2 banks, none damaged\n")
    values = np.load(path / "values.npy", mmap_mode="r+")
    values[7] += 1
    values.flush()
    assert good("check", str(tmp_path), "--quick").endswith("none damaged\n")
    result = call("check", str(tmp_path))
    assert isinstance(result.exception, BankDamaged)
    states(result.exception, "1 of 2 banks")
    states(result.stdout, path, "block 0", "rows 0 to 255")
    as_json = json.loads(call("check", str(tmp_path), "--json").stdout)
    assert [bool(row["fault"]) for row in as_json] == [row["path"] == str(path) for row in as_json]


@pytest.mark.parametrize("damage", ["ids", "huge", "flat", "moved", "no ids"])
def test_checking_compares_a_bank_with_its_own_key(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path, "one")
    facts = {"moved": path.name, "no ids": "No such file"}
    if damage == "huge":
        np.save(path / "ids.npy", IDS.numpy() + 2**60)
    elif damage == "flat":
        np.save(path / "view.npy", np.int64(1))
    elif damage == "ids":
        np.save(path / "ids.npy", IDS.numpy() + 1)
    elif damage == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        (path / "ids.npy").unlink()
    result = call("check", str(tmp_path))
    assert result.exit_code == 1
    states(result.stdout, facts.get(damage, "ids.npy and view.npy"))


def test_clearing_one_bank_by_its_folder(tmp_path: Path) -> None:
    path, other = make(tmp_path, "one"), make(tmp_path, "two")
    assert "removed one logits" in good("clear", str(path))
    assert find_banks(tmp_path) == [other]


def test_clearing_several_has_to_be_said(tmp_path: Path) -> None:
    make(tmp_path, "one")
    make(tmp_path, "two")
    result = call("clear", str(tmp_path))
    assert isinstance(result.exception, SettingError)
    states(result.exception, tmp_path, "2 banks", "--older AGE", "--keep SIZE", "--all")
    assert len(find_banks(tmp_path)) == 2
    assert "would remove" in good("clear", str(tmp_path), "--all", "--dry-run")
    assert len(find_banks(tmp_path)) == 2
    good("clear", str(tmp_path), "--all")
    assert not list(tmp_path.iterdir())


def test_clearing_by_age_and_by_size(tmp_path: Path) -> None:
    paths = {days: make(tmp_path, f"b{days}", idle_s=days * 86400) for days in (1, 5, 20, 40)}
    good("clear", str(tmp_path), "--older", "30d")
    assert set(find_banks(tmp_path)) == {paths[1], paths[5], paths[20]}
    size = sum(file.stat().st_size for file in paths[1].iterdir())
    good("clear", str(tmp_path), "--keep", str(2 * size + 10))
    assert set(find_banks(tmp_path)) == {paths[1], paths[5]}, "the longest unused goes first"
    (paths[1] / "values.npy").write_bytes(b"")
    good("clear", str(tmp_path), "--older", "4w")
    assert find_banks(tmp_path) == [paths[5]], "damaged ones go always"


@pytest.mark.parametrize(
    ("option", "value"), [("--older", "soon"), ("--older", "3y"), ("--keep", "much"), ("--keep", "1.2.3G")]
)
def test_ages_and_sizes_that_are_none(tmp_path: Path, option: str, value: str) -> None:
    make(tmp_path, "one")
    result = call("clear", str(tmp_path), option, value)
    assert isinstance(result.exception, SettingError)
    assert f"{option}: wanted something like" in str(result.exception)
    assert repr(value) in str(result.exception)


def test_what_is_pruned() -> None:
    def entry(name: str, size: int, idle: float, fault: str | None = None) -> BankEntry:
        return BankEntry(name, name, "logits", "float32", 1, 1, 1, size, idle, fault)

    entries = [entry("new", 10, 1.0), entry("old", 10, 9.0), entry("bad", 1, 0.0, "x"), entry("middle", 30, 5.0)]

    def names(chosen: list[BankEntry]) -> list[str]:
        return [row.path for row in chosen]

    assert names(to_prune(entries)) == ["bad"]
    assert names(to_prune(entries, older_s=6.0)) == ["old", "bad"]
    assert names(to_prune(entries, keep=45)) == ["bad", "old"]
    assert names(to_prune(entries, keep=5)) == ["bad", "old", "middle", "new"]
    assert names(to_prune(entries, older_s=6.0, keep=10)) == ["old", "bad", "middle"]


def test_a_bank_that_is_read_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    key = BankKey(weights="one", data="d", rows=BankRows(IDS).key, want="logits", shape=(4,))
    opened = Bank.open(path, key, BankRows(IDS))
    before = opened.read(IDS)
    assert remove(path) is None
    assert not path.exists()
    assert torch.equal(opened.read(IDS), before)


def test_a_bank_that_is_being_filled_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "one")
    monkeypatch.setattr("crossdistill.bank.folder.being_filled", lambda path: True)
    states(good("clear", str(path)), path, "0 bytes are free")
    assert path.exists()


def test_remains_of_killed_processes_are_swept(tmp_path: Path) -> None:
    make(tmp_path, "one")
    old, young = tmp_path / ".logits-1.abc.tmp", tmp_path / ".logits-2.abc.tmp"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - ABANDONED_S - 60,) * 2)
    good("clear", str(tmp_path), "--older", "1d")
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_is_not_there() -> None:
    with raises(BankMissing, "nowhere", "source=banked"):
        find_banks(Path("nowhere"))
