"""Names out of folders and data that came from elsewhere: wherever they are shown they stay names."""

import csv
import io
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command
from markdown_it import MarkdownIt

from crossdistill import NetworkConfig, Report, Row
from crossdistill.compare.grid import Grid
from crossdistill.compare.results.collect import Collected
from crossdistill.compare.results.csv_table import comma_separated
from crossdistill.compare.results.latex import latex
from crossdistill.compare.results.markdown import markdown as page
from crossdistill.compare.results.pairwise import compare_pairwise
from crossdistill.compare.results.table import Findings
from crossdistill.compare.results.terminal import terminal
from crossdistill.data import sets
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.run_folder.student_card import model_card
from crossdistill.runtime import escaping
from crossdistill.runtime.progress import Terminal
from crossdistill.student import save_student

NAMES = (
    *("[red]blood[/red]", "[bold", "a|b", "<script>alert(1)</script>", "<b>x", "![x](http://evil.example/p.png)"),
    *("[click](javascript:alert(1))", "http://evil.example", "www.evil.example", "*bold*", "_under_", "a_b", "`code`"),
    *("line\nbreak", "# title", "- item", "\x1b[31mred\x1b[0m", "\x9b31m", "bell\a", "\u202edlrow\u202c"),
    "\u2066x\u2069",
    *("=1+1", "+1", "-2+3", "@SUM(A1)", "\tx", "\rx", '=HYPERLINK("http://evil.example")', "50 % & $x$ #1 {x} ~^"),
    "\\input",
    *("nul\0", "\ud800", "a\u2028b", "~~x~~", "&lt;b&gt;", "| --- |\n| x |", "مرحبا", "数字", "👩‍🔬", "a\\", "\\"),
)  # fmt: skip
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def hidden(text: str) -> list[str]:
    return [c for c in text if c != "\n" and c not in "\u200c\u200d" and unicodedata.category(c) in HIDDEN]


def rendered(text: str) -> tuple[str, set[str]]:
    """What a reader of Markdown sees, and the kinds of what it is made of."""
    shown, kinds = [], set()
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        kinds.add(token.type)
        for child in token.children or []:
            kinds.add(child.type)
            shown.append(child.content)
    return "".join(shown), kinds


@pytest.mark.parametrize("name", NAMES)
def test_c_a_name_in_markdown_is_shown_as_it_is(name: str) -> None:
    shown, kinds = rendered(f"so: {escaping.markdown(name)}")
    assert shown == f"so: {escaping.visible(name)}".rstrip()
    assert kinds == {"paragraph_open", "paragraph_close", "inline", "text"} or kinds == {
        *("paragraph_open", "paragraph_close", "inline", "text", "text_special")
    }
    cells, kinds = rendered(f"| a | b |\n|---|---|\n| {escaping.markdown(name)} | 2 |\n")
    assert "a" + "b" + escaping.visible(name).strip() + "2" == cells.replace("\n", "")
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "code_inline"}


@pytest.mark.parametrize("name", ["http://evil.example", "https://x", "www.evil.example", "WWW.x.y"])
def test_c_an_address_is_no_link_where_addresses_become_links(name: str) -> None:
    assert not re.search(r"https?://|www\.", escaping.markdown(name), re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_c_a_name_moves_no_terminal_and_is_no_formula_of_a_spreadsheet_and_no_command_of_latex(name: str) -> None:
    shown = escaping.visible(name)
    assert not hidden(shown)
    assert "\n" not in shown
    assert escaping.visible("a\nb", lines=True) == "a\nb"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([escaping.csv_cell(name), 1])
    ((cell, number),) = csv.reader(io.StringIO(text.getvalue()))
    assert cell[:1] not in {"=", "+", "-", "@", "\t", "\r"}
    assert (number, hidden(cell)) == ("1", [])
    escaped = escaping.latex(name)
    plain = re.sub(r"\\text(?:asciitilde|asciicircum|backslash|less|greater)\{\}|\\[&%$#_{}]", "", escaped)
    assert not re.search(r"[\\&%$#_{}~^<>\n]", plain), escaped


@pytest.mark.parametrize(
    "name", ["av-digits", "mst-distill (mm+cm)", "kd@shuffled", "teacher:mm", "snake_case", "数字"]
)
def test_c_ordinary_names_stay_as_they_are(name: str) -> None:
    assert escaping.visible(name) == escaping.markdown(name) == escaping.csv_cell(name) == name


def row(name: str, **changes: object) -> Row:
    made = Row(name, name, name, name, 1.0, None, "accuracy", 0.5, None, (0.5,), 100, 1.0, 2.0)
    return replace(made, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_c_a_report_has_the_rows_that_it_has(name: str) -> None:
    text = Report(Path("x"), (row(name), row("plain"))).markdown()
    assert len(text.splitlines()) == 4
    _, kinds = rendered(text)
    assert not hidden(text)
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "code_inline", "s_open"}


def found(name: str) -> Findings:
    grid = Grid.parse("av-digits", methods="supervised,kd")
    rows = (row(f"teacher:{name}", student="image", teachers=None), row("chance", student="image", teachers=None))
    collected = Collected(rows, {}, {})
    return Findings(
        grid.model_copy(update={"data": name}),
        tuple(grid.cells()),
        collected,
        compare_pairwise(collected, lambda student, seed, ids: ids),
        {"kd-image": f"no layer {name}"},
        {"kd-audio": f"{name} died"},
        "About.",
        [],
        None,
    )


@pytest.mark.parametrize("name", NAMES)
def test_c_every_page_of_a_comparison(name: str) -> None:
    made = found(name)
    text = page(made)
    _, kinds = rendered(text)
    assert not hidden(text)
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "s_open"}
    drawn = terminal(made)
    assert not hidden(drawn)
    assert f"teacher:{escaping.visible(name)}".rstrip() in drawn
    cells = list(csv.DictReader(io.StringIO(comma_separated(made))))
    assert {line["mean"] for line in cells} == {"0.5", ""}
    texts = [line[field] for line in cells for field in ("data", "method", "teachers", "student")]
    assert escaping.csv_cell(name) in texts
    assert not [cell for cell in texts if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}]
    lines = latex(made).splitlines()
    assert lines[0].startswith("% ")
    assert lines[1].startswith(r"\begin{tabular}")


def dataset(names: Mapping[str, str]) -> Dataset:
    return Dataset.from_arrays(
        names["data"],
        {"picture": np.zeros((20, 1, 8, 8), np.float32)},
        np.arange(20) % 2,
        classes=[names["class"], "other"],
        about=names["about"],
        licences=[Licence(names["data"], names["data"], "https://example.org", True)],
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name.isprintable() or name in {"line\nbreak", "bell\a"}])
def test_c_a_model_card_is_made_of_what_it_is_made_of(name: str) -> None:
    plain = model_card(dataset({"data": "d", "class": "c", "about": "a"}), "t", "", ["x"], 1)
    text = model_card(dataset({"data": name, "class": name, "about": "a"}), name, "", ["x"], 1)
    assert rendered(text)[1] - {"text_special"} == rendered(plain)[1] - {"text_special"}
    assert len(text.splitlines()) == len(plain.splitlines())


def test_c_a_model_card_shows_some_of_many_classes() -> None:
    data = dataset({"data": "d", "class": "c", "about": "a"})
    text = model_card(replace(data, classes=tuple(map(str, range(5000)))), "t", "", [], 1)
    assert ", 99 and 4,900 more.\n" in text
    assert len(text) < 3000


@pytest.mark.parametrize("kind", ["arrays", "recordings"])
def test_c_an_unknown_licence_is_unknown_and_forbids_nothing(kind: str) -> None:
    """The licence that the data sets of a user's own files state."""
    sources = {"arrays": "av_mnist_arrays", "recordings": "av_digits"}
    code = (Path(sets.__file__).parent / f"{sources[kind]}.py").read_text()
    assert '"unknown"' in code
    assert not re.search(r"as (their source|its folder) says", code)
    data = replace(
        dataset({"data": "d", "class": "c", "about": "a"}), licences=(Licence("own", "unknown", "own files", None),)
    )
    card = model_card(data, "t", "", [], 1)
    assert "- own: unknown (own files)" in card
    assert "Forbids" not in card
    assert "not known" in card


def test_c_predictions_and_complaints_move_nothing(tmp_path: Path, crossdistill: Command) -> None:
    torch.manual_seed(0)
    model = NetworkConfig(model="small-image", reads=("picture",))
    evil = "\x1b[31m[red]\u202e\nx"
    data = dataset({"data": "d", "class": evil, "about": "a"})
    data = replace(data, classes=(evil, evil))
    save_student(tmp_path / "student", model.build(2), model, data, "card")
    np.save(tmp_path / "a\x1b\nb.npy", np.zeros((1, 8, 8), np.float32))
    said = crossdistill("predict", tmp_path / "student", tmp_path / "a\x1b\nb.npy")
    assert (said.status, said.out.count("\n")) == (0, 1)
    assert not hidden(said.out)
    assert r"\x1b[31m[red]\u202e\nx" in said.out
    for words in (("predict", tmp_path / "student", "no\x1b[2J.npy"), ("run", "no\x1b[2J"), ("eval", "no\x1b[2J")):
        assert not hidden(crossdistill(*words).complaint())


def test_c_progress_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as display:
        display.begin("[red]\x1b[2Jstage", 3)
        display.end("\u202enote")
        display.say("[bold]\x9bx")
        display.data("\x1breading", 1, 1)
    text = capsys.readouterr().err
    assert not hidden(text)
    assert "[red]" in text
    assert "[bold]" in text
