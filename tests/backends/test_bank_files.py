"""Banks that are handed on: a run from the file is the run with the network; a file from elsewhere is verified."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_recipes import recipe, stage
from builders import Heard
from facts import raises, states
from safetensors.torch import load_file, save_file

from crossdistill import Dataset, Recipe, Variation, Variations, run
from crossdistill.backends.bank_file import DESCRIPTION, BankFile, BankInfo, digest, read_bank_file, write_bank_file
from crossdistill.backends.compressed import compress, measure_loss, rebuild
from crossdistill.backends.from_bank import keep
from crossdistill.bank.export import Form, export_bank
from crossdistill.errors import BankDamaged, BankMissing, DataError, RecipeError, SettingError
from crossdistill.methods import KD
from crossdistill.planning.networks import build_members
from crossdistill.runtime.tensor_file import read_metadata
from crossdistill.testing import toy_dataset

TWO = Variations(inputs={"first": Variation(noise=0.5)}, views=2)
TEACHER = "teacher-0"


def taught(dataset: Dataset, teachers: Mapping[str, Any] | None = None) -> Recipe:
    made = recipe(stage(KD(), "banked", epochs=2), dataset=dataset)
    given = {TEACHER: made.teachers[TEACHER]} if teachers is None else teachers
    return Recipe.model_validate({**dict(made), "teachers": given})


def student(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on plain toy data whose two teachers are banked."""
    out = tmp_path_factory.mktemp("finished")
    run(recipe(stage(KD(), "banked", epochs=1), dataset=toy_dataset()), out)
    return out


def exported(run_folder: Path, folder: Path, dataset: Dataset, suffix: str = ".safetensors", **form: Any) -> Path:
    export_bank(run_folder / "banks", folder / f"given{suffix}", dataset, teacher=TEACHER, form=Form(**form))
    return folder / f"given{suffix}"


def members(dataset: Dataset, file: Path, **options: Any) -> Any:
    made = taught(dataset, {TEACHER: {"model": f"bank:{file}", "options": options}})
    return build_members(made, dataset, torch.device("cpu"))


def refused(dataset: Dataset, file: Path, *facts: object, **options: Any) -> None:
    built = members(dataset, file, **options)
    assert TEACHER not in built.networks
    states(" ".join(built.faults), *facts)


def drawn(rows: int, classes: int = 100) -> torch.Tensor:
    """Logits as of a trained teacher: a spread of 2.5 and a margin of 12."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.5 * torch.randn(rows, classes, generator=generator)
    return logits.scatter_add(1, torch.randint(0, classes, (rows, 1), generator=generator), torch.full((rows, 1), 12.0))


@pytest.mark.parametrize("views", [None, TWO])
def test_a_run_from_the_file_is_the_run_with_the_network(tmp_path: Path, views: Variations | None) -> None:
    dataset = replace(toy_dataset(absent={"second": 0.2}), augmentation=views)
    run(taught(dataset), tmp_path / "run")
    file = exported(tmp_path / "run", tmp_path, dataset)
    heard = Heard()
    run(taught(dataset, {TEACHER: {"model": f"bank:{file}"}}), tmp_path / "again", display=heard)
    for name, value in student(tmp_path / "run").items():
        assert torch.equal(value, student(tmp_path / "again")[name]), name
    states(" ".join(heard.lines), "stored outputs", TEACHER, *(["2 views"] if views else []))
    assert "teacher:" not in (tmp_path / "again" / "results.json").read_text(), "the file has no test rows"


def test_the_smallest_form_gives_nearly_the_same_logits(finished: Path, tmp_path: Path) -> None:
    dataset = toy_dataset()
    file = exported(finished, tmp_path, dataset, dtype="int8", top=2)
    (stored,) = read_bank_file(file)
    assert stored.tensors["logits.values"].dtype == stored.tensors["logits.classes"].dtype == torch.uint8
    assert (stored.info.teacher.name, stored.info.classes) == (TEACHER, dataset.classes)
    assert 0 < stored.info.loss[0].kl_mean < stored.info.loss[0].kl_max < 0.2
    rows = dataset.splits["validation"]
    full, small = (
        members(dataset, one).networks[TEACHER](dataset.batch(rows)).logits
        for one in (exported(finished, tmp_path / "full", dataset), file)
    )
    assert full.topk(2).indices.sort(1).values.equal(small.topk(2).indices.sort(1).values)
    torch.testing.assert_close(small.softmax(1).topk(2).values, full.softmax(1).topk(2).values, rtol=0.02, atol=1e-3)


def test_the_figure_50000_rows_of_100_logits_the_ten_largest_in_a_byte_each(tmp_path: Path) -> None:
    logits = drawn(50_000)
    parts = compress(logits, "int8", 10)
    loss = measure_loss(logits, parts)
    tensors = {"ids": torch.arange(50_000, dtype=torch.int32), **{f"logits.{k}": v for k, v in parts.items()}}
    names = {"classes": [f"class {n}" for n in range(100)], "rows": 50_000, "digest": digest(tensors)}
    about = {"teacher": {"name": "cnn"}, "data": {"name": "drawn", "fingerprint": "f", "splits": {}}}
    info = BankInfo.model_validate_json(json.dumps({**names, **about, "logits": {"dtype": "int8", "top": 10}}))
    write_bank_file(tmp_path / "drawn.safetensors", [BankFile(info, tensors)])
    assert (tmp_path / "drawn.safetensors").stat().st_size <= 2e6
    assert loss.at[0].kl_mean < 0.02
    assert loss.agreement > 0.999
    assert [one.info for one in read_bank_file(tmp_path / "drawn.safetensors")] == [info]


def test_compressed_logits_row_by_row() -> None:
    logits = drawn(20, 30)
    again = rebuild(compress(logits, "int8", 4), 30)
    for row, found in zip(logits.tolist(), again.tolist(), strict=True):
        order = sorted(range(30), key=lambda number: -row[number])
        step = (row[order[0]] - row[order[3]]) / 255
        for number in order[:4]:
            assert found[number] == pytest.approx(row[number], abs=step / 2 + 1e-4)
        rest = sum(math.exp(row[number]) for number in order[4:])
        for number in order[4:]:
            assert math.exp(found[number]) == pytest.approx(rest / 26, rel=1e-4)
    halves = compress(logits, "float16")
    assert set(halves) == {"values"}
    torch.testing.assert_close(rebuild(halves, 30), logits, rtol=1e-3, atol=1e-3)
    equal = torch.full((3, 5), 2.0)
    torch.testing.assert_close(rebuild(compress(equal, "int8", 2), 5), equal)
    with raises(SettingError, "float16", "1e+05"):
        compress(logits.new_full((1, 3), 1e5), "float16")
    with raises(SettingError, 0):
        compress(logits, top=0)


def test_the_loss_is_the_divergence_of_the_rebuilt_distribution() -> None:
    logits = drawn(5, 8)
    parts = compress(logits, "float32", 3)
    loss, again = measure_loss(logits, parts), rebuild(parts, 8)
    for one in loss.at:
        wanted, found = (value.double().div(one.temperature).softmax(1) for value in (logits, again))
        rows = [
            sum(p * math.log(p / q) for p, q in zip(*pair, strict=True))
            for pair in zip(wanted.tolist(), found.tolist(), strict=True)
        ]
        assert (one.kl_mean, one.kl_max) == pytest.approx((sum(rows) / 5, max(rows)), rel=1e-4)
    assert loss.agreement == 1


def test_other_data_are_refused(finished: Path, tmp_path: Path) -> None:
    dataset = toy_dataset()
    file = exported(finished, tmp_path, dataset)
    refused(toy_dataset(seed=1), file, "fingerprint", "toy")
    swapped = replace(dataset, classes=("class 1", "class 0", *dataset.classes[2:]))
    refused(swapped, file, "another order", "'class 0'", "'class 1'")
    refused(replace(dataset, classes=("class 0", "class 1", "class 2", "bird")), file, "'bird'", "'class 3'")
    augmented = replace(dataset, augmentation=TWO)
    refused(augmented, file, "options.view=0", "2 views")
    assert not members(augmented, file, view=0).faults
    refused(dataset, file, "view", 3, view=3)
    refused(dataset, file, "'views'", views=0)
    refused(dataset, tmp_path / "nowhere.safetensors", "nowhere.safetensors")


def test_a_student_has_no_stored_outputs(finished: Path, tmp_path: Path) -> None:
    dataset = toy_dataset()
    file = exported(finished, tmp_path, dataset)
    made = taught(dataset)
    made = Recipe.model_validate({**dict(made), "student": {"model": f"bank:{file}", "reads": ("first",)}})
    with raises(RecipeError, "student", "train"):
        run(made, tmp_path / "none")


def changed(file: Path, **tensors: torch.Tensor) -> Path:
    """The file with other tensors, and a hash that fits them."""
    made = {**load_file(file), **tensors}
    (info,) = json.loads(read_metadata(file)[DESCRIPTION])
    other = file.with_name("changed.safetensors")
    save_file(made, other, {DESCRIPTION: json.dumps([{**info, "digest": digest(made)}])})
    return other


def test_damaged_and_edited_files_are_refused(finished: Path, tmp_path: Path) -> None:
    file = exported(finished, tmp_path, toy_dataset(), dtype="int8", top=2)
    content = file.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for damaged in (content[:-7], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b"", b"not a file of it"):
        broken.write_bytes(damaged)
        with raises((BankDamaged, DataError), "broken.safetensors"):
            read_bank_file(broken)
    stored = load_file(file)
    rows = len(stored["ids"])
    for facts, tensors in (
        (("ids", "others"), {"ids": stored["ids"] - 1}),
        (("twice",), {"ids": torch.zeros_like(stored["ids"])}),
        (("NaN",), {"logits.rest": torch.full((rows,), torch.nan)}),
        (("logits.classes", "0 to 3"), {"logits.classes": stored["logits.classes"] + 2}),
        (("logits.classes", "twice"), {"logits.classes": torch.zeros_like(stored["logits.classes"])}),
        (("logits.scale",), {"logits.scale": -torch.ones(rows)}),
        (("logits.values", f"({rows}, 2)"), {"logits.values": stored["logits.values"][:, :1].contiguous()}),
        (("'more'", "unknown"), {"more": torch.zeros(1)}),
    ):
        with raises(BankDamaged, "changed.safetensors", *facts):
            read_bank_file(changed(file, **tensors))
    save_file(stored, broken)
    with raises(BankDamaged, "bank export"):
        read_bank_file(broken)
    save_file(stored, broken, {DESCRIPTION: '[{"format": 1, "teacher": "mine"}]'})
    with raises(BankDamaged, "teacher"):
        read_bank_file(broken)


def test_a_file_of_several_teachers(finished: Path, tmp_path: Path) -> None:
    dataset, file = toy_dataset(), tmp_path / "both.safetensors"
    infos = export_bank(finished / "banks", file, dataset, form=Form("float16"))
    assert [info.teacher.name for info in infos] == ["teacher-0", "teacher-1"]
    assert [one.info for one in read_bank_file(file)] == list(infos)
    rows = dataset.batch(dataset.splits["train"][:9])
    own = members(dataset, file).networks[TEACHER](rows).logits
    other = members(dataset, file, teacher="teacher-1").networks[TEACHER](rows).logits
    assert not torch.equal(own, other)
    alone = exported(finished, tmp_path, dataset, dtype="float16")
    assert torch.equal(members(dataset, alone).networks[TEACHER](rows).logits, own)
    refused(dataset, file, "'teacher-2'", "'teacher-1'", teacher="teacher-2")
    save_file({**load_file(file), "2.ids": torch.zeros(1)}, alone, read_metadata(file))
    with raises(BankDamaged, "'2.ids'"):
        read_bank_file(alone)
    with raises(SettingError, "teacher-0", "teacher-1", "parquet"):
        export_bank(finished / "banks", tmp_path / "both.parquet", dataset)


def test_a_teacher_to_export_is_named_and_has_a_bank(finished: Path, tmp_path: Path) -> None:
    dataset = toy_dataset()
    banks = finished / "banks"
    export_bank(banks, tmp_path / "one.safetensors", dataset, teacher="teacher-1")
    assert [one.info.teacher.name for one in read_bank_file(tmp_path / "one.safetensors")] == ["teacher-1"]
    with raises(BankMissing, "'teacher-2'", "'teacher-1'"):
        export_bank(banks, tmp_path / "one.safetensors", dataset, teacher="teacher-2")
    with raises(BankMissing, "--embedding"):
        export_bank(banks, tmp_path / "one.safetensors", dataset, teacher="teacher-1", form=Form(embedding=True))
    with raises(SettingError, ".safetensors", "'.pkl'"):
        export_bank(banks, tmp_path / "one.pkl", dataset, teacher="teacher-1")


def test_an_imported_file_has_a_name(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    dataset = toy_dataset()
    file = exported(finished, tmp_path, dataset)
    path, info = keep(file, "toy")
    assert path.parent.parent == tmp_path / "cache"
    assert keep(file, "toy") == (path, info), "again is the same"
    assert not members(dataset, Path("toy")).faults
    refused(dataset, Path("toys"), "'toy'", "bank import")
    other = exported(finished, tmp_path, dataset, dtype="float16")
    with raises(SettingError, "'toy'", "--name"):
        keep(other, "toy")
    with raises(SettingError, "'../toy'"):
        keep(other, "../toy")


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    dataset = replace(toy_dataset(), augmentation=TWO)
    run(taught(dataset), tmp_path / "run")
    for form in ({"dtype": "int8", "top": 2}, {}):
        (plain,), (table,) = (
            read_bank_file(exported(tmp_path / "run", tmp_path, dataset, s, **form))
            for s in (".safetensors", ".parquet")
        )
        assert table.info == plain.info
        assert all(torch.equal(value, table.tensors[name]) for name, value in plain.tensors.items())
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "given.parquet").read_bytes()[:200])
    with raises(BankDamaged, "broken.parquet"):
        read_bank_file(tmp_path / "broken.parquet")
