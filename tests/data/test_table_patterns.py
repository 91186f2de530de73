"""Patterns in place of columns: names of columns, and names of files made of a row's cells."""

from pathlib import Path

import pytest
from facts import raises, states
from own_files import write_picture, write_table

from crossdistill.data.table import TableConfig
from crossdistill.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A table of ids and labels; the picture of id 3 is `p/3_v0.png`."""
    rows = [{"id": number, "label": ("cat", "dog")[number % 2]} for number in range(12)]
    for row in rows:
        write_picture(tmp_path / "p" / f"{row['id']}_v{row['id'] % 4}.png", int(row["id"]))
    return write_table(tmp_path / "t.csv", rows)


def test_a_pattern_finds_the_file_of_each_row(pictures: Path) -> None:
    config = TableConfig.model_validate({"path": pictures, "inputs": {"image": "p/{id}_*.png"}})
    dataset = config.build(lambda *_: None)
    assert list(dataset.inputs) == ["image"]
    assert [Path(dataset.inputs["image"].name_of(row)).name for row in (1, 3, 11)] == [
        "1_v1.png",
        "3_v3.png",
        "11_v3.png",
    ]
    by_suffix = TableConfig.model_validate({"path": pictures, "inputs": {"image": {"glob": "p/{id}_v?.*"}}})
    again = by_suffix.build(lambda *_: None)
    assert again.inputs["image"].fingerprint == dataset.inputs["image"].fingerprint


def test_none_or_several_files_of_a_row_are_told(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_picture(pictures.parent / "p" / "5_v9.png", 5)
    (pictures.parent / "p" / "7_v3.png").unlink()
    wanted = {"path": pictures, "inputs": {"image": "p/{id}_*.png"}}
    with raises(DataError, "data.inputs.image", "several", "line 7", "5_v1.png", "5_v9.png", "no file", "line 9"):
        TableConfig.model_validate(wanted).build(lambda *_: None)
    (pictures.parent / "p" / "5_v9.png").unlink()
    dataset = TableConfig.model_validate({**wanted, "on_bad": "skip"}).build(lambda *_: None)
    assert len(dataset) == 11
    states(caplog.text, "no file", "line 9")


@pytest.mark.parametrize(
    ("pattern", "facts"),
    [
        ("p/{idd}_*.png", ("data.inputs.image", "'idd'", "'id'")),
        ("../{id}.png", ("outside", "data.files")),
        ("q/{id}.png", ("data.inputs.image", "no file", "lines 2")),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(pictures: Path, pattern: str, facts: tuple[str, ...]) -> None:
    write_picture(pictures.parent.parent / "0.png", 0)
    with raises(DataError, *facts):
        TableConfig.model_validate({"path": pictures, "inputs": {"image": pattern}}).build(lambda *_: None)


def test_a_cell_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    rows = [{"id": name, "label": label} for name, label in (("a[1]", "x"), ("a1", "y"), ("*", "x"), ("b", "y")) * 3]
    for name in ("a[1]", "a1", "*", "b"):
        write_picture(tmp_path / f"{name}.png", len(name))
    table = write_table(tmp_path / "t.csv", [{**row, "n": n} for n, row in enumerate(rows)])
    config = TableConfig.model_validate({"path": table, "inputs": {"image": "{id}.png", "n": ["n"]}})
    source = config.build(lambda *_: None).inputs["image"]
    assert [Path(source.name_of(row)).stem for row in range(4)] == ["a[1]", "a1", "*", "b"]


def test_columns_are_named_by_a_pattern(tmp_path: Path) -> None:
    rows = [{"pixel_0": n, "pixel_1": 2 * n, "other": n, "label": "ab"[n % 2]} for n in range(12)]
    table = write_table(tmp_path / "t.csv", rows)
    dataset = TableConfig.model_validate({"path": table, "inputs": {"pixels": "pixel_*"}}).build(lambda *_: None)
    assert dataset.input_specs["pixels"].shape == (2,)
    with raises(DataError, "data.inputs.pixels", "pixl_*", "pixel_0"):
        TableConfig.model_validate({"path": table, "inputs": {"pixels": "pixl_*"}}).build(lambda *_: None)
    everything = TableConfig.model_validate({"path": table, "inputs": {"pixels": "*"}}).build(lambda *_: None)
    assert everything.input_specs["pixels"].shape == (3,)
    assert everything.classes == ("a", "b")
