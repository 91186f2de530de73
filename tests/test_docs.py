"""The pages agree with the repository: links resolve, and what they quote is what there is."""

import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from crossdistill import Recipe, Stage, run
from crossdistill.cli.main import app
from crossdistill.compare.grid import Grid
from crossdistill.data import find_data
from crossdistill.errors import SettingError
from crossdistill.recipe import Checkpoints
from crossdistill.recipes import is_own, make
from crossdistill.recipes import names as recipe_names
from crossdistill.recipes.own_files import is_file_data
from crossdistill.recipes.stages import PLANS
from crossdistill.testing import toy_dataset, toy_network

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, timeout=60,
    )  # fmt: skip
    if listed.returncode:
        return sorted(ROOT.glob("*.md"))
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def anchors(page: Path) -> set[str]:
    """Headings as links name them: lower case, spaces as hyphens, punctuation gone."""
    titles = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path, text: str) -> list[str]:
    wrong = []
    for match in LINK.finditer(FENCE.sub("", text)):
        link = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert not broken_links(page, page.read_text())


def test_a_broken_link_is_found() -> None:
    text = "[a](nowhere.md) [b](CHANGELOG.md) [c](CHANGELOG.md#no-such-heading) [d](https://example.org/x)"
    assert broken_links(ROOT / "README.md", text) == ["nowhere.md", "CHANGELOG.md#no-such-heading"]


# What the pages quote is what there is.

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTEBOOKS = ("CHANGELOG.md", "LOG.md")
"""Pages about the past: what they name need not be there any more."""
PAGES = [str(page.relative_to(ROOT)) for page in pages() if page.name not in NOTEBOOKS]
COMMAND = re.compile(
    r"(?<![\w/.-])crossdistill ((?:run|compare|eval|predict|list|bank|doctor|probe|merge|audio|--)[^`\n#]*)"
)
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b")
"""A word that a reader replaces: DATA/METHOD, FOLDER."""
# typer brings a click of its own.
WRONG_USE: type[BaseException] = typer.BadParameter.__bases__[0]
MAKE = re.compile(r"`make ([a-z-]+)`|^make ([a-z-]+)", re.MULTILINE)
PATH = re.compile(r"`((?:src|tests|examples|benchmarks|\.ci)/[\w./-]+|(?:[a-z_]+/)*[a-z_]+\.py)`")


ALL = "".join((ROOT / page).read_text() for page in PAGES)


def _fenced(page: str) -> list[tuple[str, str]]:
    return FENCED.findall((ROOT / page).read_text())


def commands() -> list[str]:
    texts = [(ROOT / page).read_text().replace("\\\n", " ") for page in PAGES]
    found = [match.group(1).strip() for text in texts for match in COMMAND.finditer(text)]
    return sorted({command for command in found if "..." not in command})


def _parse(command: str) -> dict[str, Any]:
    """The options of a command, taken by the command line's own parser and not carried out."""
    words = shlex.split(command)
    parser: Any = typer.main.get_command(app)
    while hasattr(parser, "commands"):
        if not words or words[0].startswith("-"):
            return dict(parser.make_context("crossdistill", words or ["--help"], resilient_parsing=True).params)
        assert words[0] in parser.commands, f"crossdistill {command}: there is no {words[0]!r}"
        parser = parser.commands[words.pop(0)]
    # A command that is only named has no arguments.
    return dict(parser.make_context("crossdistill", words or ["--help"], resilient_parsing=not words).params)


def test_commands_are_found() -> None:
    assert len(commands()) >= 12
    assert any(command.startswith("compare ") for command in commands())


@pytest.mark.parametrize("command", commands())
def test_quoted_commands_parse_and_name_what_exists(command: str) -> None:
    found = _parse(command)
    if command.startswith("run ") and ":" not in found["recipe"] and "recipe.yaml" not in found["recipe"]:
        if PLACEHOLDER.search(found["recipe"]):
            return
        data, _, method = found["recipe"].rpartition("/")
        if is_file_data(data):
            # The reader's own files: names of the method and of fields alone.
            assert method in PLANS
            fields = [text.split(".")[1].partition("=")[0] for text in found["settings"] if text.startswith("data.")]
            assert set(fields) <= set(find_data(data).model_fields)
            return
        assert found["recipe"] in recipe_names()
        # Every setting, by name and by type.
        make(found["recipe"], list(found["settings"] or []), found["seed"])
    if command.startswith("compare ") and not PLACEHOLDER.search(found["data"]):
        names = ("preset", "methods", "students", "teachers", "seeds", "labelled", "control", "tiny")
        own = is_file_data(found["data"]) or is_own(found["data"])
        assert Grid.parse(
            "av-digits" if own else found["data"],
            settings=tuple(found["settings"] or ()),
            **{n: found[n] for n in names},
        ).cells()


@pytest.mark.parametrize("command", ["runn av-digits/kd", "run av-digits/kd --sett a=b", "list recipe"])
def test_a_command_that_is_not_there_is_found(command: str) -> None:
    with pytest.raises((AssertionError, WRONG_USE)):
        _parse(command)


def test_single_settings_that_are_quoted_exist() -> None:
    """`--set a.b=c` between backticks, on its own: each fits one of the recipes at least."""
    quoted = re.findall(r"`--set ([^`]+)`", ALL)
    alone = [text.strip("'") for several in quoted for text in several.split(" --set ")]
    assert len(alone) > 5
    needed: dict[str, list[str]] = {"speech-music/translate": ["teachers.speech=small-audio", "student=small-audio"]}
    recipes = ["av-digits/kd", "av-digits/mst-distill", "av-mnist/kd", "cifar100/kd", *needed]
    for text in alone:
        faults = []
        for recipe in recipes:
            try:
                make(recipe, [*needed.get(recipe, []), text])
            except SettingError as error:
                faults.append(str(error))
        assert PLACEHOLDER.fullmatch(text.partition("=")[0]) or len(faults) < len(recipes), "\n".join(faults)


def test_python_is_that_of_the_examples() -> None:
    """`tests/test_examples.py` runs these."""
    blocks = [(page, text) for page in PAGES for language, text in _fenced(page) if language == "python"]
    assert {page for page, _ in blocks} >= {"README.md", "docs/own-data.md", "docs/own-loop.md"}
    sources = [path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))]
    for page, block in blocks:
        # Taken out of a loop, lines lose their indent.
        forms = {textwrap.indent(block, " " * depth, lambda line: bool(line.strip())) for depth in (0, 4, 8)}
        assert any(form in source for form in forms for source in sources), f"{page}: in no example:\n{block}"


def test_quoted_make_verbs_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    quoted = {one or other for page in PAGES for one, other in MAKE.findall((ROOT / page).read_text())}
    assert {"demo", "test"} <= quoted <= verbs


def test_extras_that_are_installed_on_a_page_exist() -> None:
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    quoted = re.findall(r"'\.\[([a-z,]+)\]'", ALL)
    assert quoted
    assert {extra for text in quoted for extra in text.split(",")} <= declared


def test_quoted_paths_exist() -> None:
    wrong = []
    for page in PAGES:
        for name in PATH.findall((ROOT / page).read_text()):
            places = (ROOT / name, ROOT / "src" / "crossdistill" / name, ROOT / "tests" / name)
            inside = "/" not in name and any((ROOT / "src").rglob(name))
            if not re.search("[A-Z]{3}", name) and not inside and not any(place.exists() for place in places):
                wrong.append(f"{page}: {name}")
    assert not wrong, wrong


def test_the_layout_of_a_run_is_what_a_run_leaves(tmp_path: Path) -> None:
    block = next(text for page in PAGES for _, text in _fenced(page) if text.startswith("recipe.yaml  "))
    named = {line.split()[0].rstrip("/") for line in block.splitlines()}
    dataset = toy_dataset(("first",), rows=60)
    recipe = Recipe(
        data=dataset,
        student=toy_network(("first",)),
        stages=(Stage(method="supervised", epochs=1),),
        checkpoints=Checkpoints(steps=1),
    )
    run(recipe, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    # Nothing runs any more, and there is no teacher whose outputs could be kept.
    assert left - {"checkpoints", "banks"} == named - {"checkpoints", "banks"}
    assert {"checkpoints", "banks"} <= named
    files = {path.name for path in (tmp_path / "out" / "student").iterdir()}
    assert all(f"`{name}`" in ALL for name in files), files


def test_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def changelog_faults(text: str) -> list[str]:
    """What is wrong with the headings of a changelog in the form of Keep a Changelog."""
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    faults, versions, under = [], [], []
    for level, title in re.findall(r"^(#+)\s+(.+?)\s*$", FENCE.sub("", text), re.MULTILINE):
        if level == "##":
            versions.append(title)
            under = []
            if title != "[Unreleased]" and not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title):
                faults.append(f"{title!r} is neither [Unreleased] nor [VERSION] - DATE")
        elif level == "###":
            if title not in kinds or title in under:
                faults.append(f"{title!r} is none of {', '.join(kinds)}, or stands twice under {versions[-1:]}")
            under.append(title)
        elif (level, title) != ("#", "Changelog"):
            faults.append(f"{level} {title} is no heading of a changelog")
    return faults + ([] if versions[:1] == ["[Unreleased]"] else ["the first version is not [Unreleased]"])


def test_the_changelog_is_well_formed() -> None:
    assert not changelog_faults((ROOT / "CHANGELOG.md").read_text())


def test_faults_of_a_changelog_are_found() -> None:
    good = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.1.0] - 2026-12-01\n\n### Fixed\n"
    assert not changelog_faults(good)
    for old, new in (("[Unreleased]", "Unreleased"), ("Fixed", "Mended"), ("2026-12-01", "soon"), ("### F", "#### F")):
        assert changelog_faults(good.replace(old, new))
