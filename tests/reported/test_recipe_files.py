"""Recipe files and settings of any content: a recipe, or a sentence; never a traceback, a hang or a filled memory."""

import os
import random
import resource
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from facts import raises

from crossdistill.errors import CrossdistillError, RecipeError, SettingError
from crossdistill.overrides import parse_override
from crossdistill.recipe import Recipe
from crossdistill.recipes import make
from crossdistill.runtime.plain_yaml import MOST_BYTES, parse_yaml, read_yaml

NAMES = ("av-digits/mst-distill", "av-digits/kd", "av-digits/crd", "av-digits/supervised")
SECONDS = 10.0
"""Of one file; far more than any takes, and far less than a hang."""
MEGABYTES = 300

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NASTY = {
    "alias bomb": (BOMB, "10000"),
    "flat alias bomb": (f"a: &a [{'x,' * 5000}x]\nb: [{'*a,' * 4000}*a]\n", "10000"),
    "recursion": ("a: &a [*a]", "*a"),
    "deep lists": ("[" * 100_000, "40"),
    "deep blocks": ("- " * 100_000, "40"),
    "deep mappings": ("{a: " * 5_000, "40"),
    "many values": ("[1" + ",1" * 100_000 + "]", "10000"),
    "large": ("#" * (MOST_BYTES + 1), str(MOST_BYTES)),
    "tagged number": ("a: !!int abc", "!!int"),
    "tagged truth": ("a: !!bool perhaps", "!!bool"),
    "other tag": ("a: !!python/object/apply:os.system [x]", "!!python"),
    "binary": ("a: !!binary aGk=", "!!binary"),
    "long number": ("a: " + "9" * 5_000, "5000"),
    "long hexadecimal": ("a: 0x" + "f" * 5_000, "5002"),
    "long version": ("%YAML " + "9" * 5_000 + ".1\n---\na: 1", "5000"),
    "lone surrogate": ('a: "\\ud800"', "characters"),
    "beyond Unicode": ('a: "\\UFFFFFFFF"', "number"),
    "control character": ('a: "\\0"', "characters"),
    "key twice": ("a: 1\nb: 2\na: 3", "line 3"),
    "key twice below": ("a:\n  - b: 1\n    c: 2\n    b: 3", "line 4"),
    "key of a list": ("? [a]\n: b", "key"),
}
DATES = ("2026-13-45", "2026-01-01", "2026-11-22T10:11:99", "0000-00-00")
PIECES = [
    *(text for text, _ in NASTY.values() if len(text) < 6_000),
    *DATES,
    ".inf", "-.inf", ".nan", "~", "''", "0x7fffffffffffffff", "1_000", "1e400", "-0", "1:30", "yes", "<<: {a: 1}",
    "!!set {a}", "!!str [1]", "&x", "*x", "? a", "- ", "{", "}", "[", "]", ": ", "#", "|", ">", "%", "@", "`", "\t",
    "\r", "\x00", "\x1b[31m",
    "\ufeff", "é", "𝄞", "data: {name: av-digits}", "stages: []", "name: [", "!!null ''", "live: x",
    "9999999999999999999999999999", "-1", "a" * 3_000,
]  # fmt: skip
SETTINGS = (
    "seed=3", "data.labelled=0.05", "stages.0.epochs=2", "stages.0.optimizer.learning_rate=1e-3", "device=cpu",
    "stages.0.method.temperature=2", "stages.0={name: a, method: kd, epochs: 1}", "student.options={width: 8}",
    "checkpoints.minutes=1", "stages.0.weighting.name=pcgrad", "tracking=[wandb]", "data.augmentation.views=8",
)  # fmt: skip


@cache
def texts() -> tuple[str, ...]:
    """Recipes as files, the whole of them."""
    return tuple(make(name, []).to_yaml() for name in NAMES)


def mutated(text: str, draw: random.Random) -> str:
    """One to six changes, of characters, values and lines."""
    for _ in range(draw.choice((1, 1, 2, 6))):
        lines = text.split("\n")
        at, here = draw.randrange(len(lines)), draw.randrange(len(text) + 1)
        line = lines[at]
        change = draw.choice(("drop", "copy", "swap", "indent", "value", "key", "insert", "cut", "character", "splice"))
        if change == "drop":
            del lines[at]
        elif change == "copy":
            lines.insert(draw.randrange(len(lines)), line)
        elif change == "swap":
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], line
        elif change == "indent":
            lines[at] = draw.choice(("  ", "\t", "- ", "    ")) + line
        elif change == "value":
            lines[at] = f"{line.partition(':')[0]}: {draw.choice(PIECES)}"
        elif change == "key":
            lines[at] = draw.choice(PIECES) + line
        elif change == "splice":
            other = draw.choice(texts()).split("\n")
            start = draw.randrange(len(other))
            lines[at:at] = other[start : start + draw.randint(1, 8)]
        text = "\n".join(lines)
        if change == "insert":
            text = text[:here] + draw.choice(PIECES) + text[here:]
        elif change == "cut":
            text = text[: max(1, here)]
        elif change == "character":
            text = text[:here] + chr(draw.choice((draw.randrange(128), draw.randrange(0x10FFFF)))) + text[here + 1 :]
    return text


class Held:
    """Every attempt ends with a value or a sentence, within its time."""

    def __init__(self) -> None:
        self.refused = self.taken = 0
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, attempt: Callable[[], Any], what: str) -> Any:
        began, found, said = time.process_time(), None, b"said"
        try:
            found = attempt()
            self.taken += 1
        except CrossdistillError as error:
            self.refused += 1
            # What a terminal can show at all.
            said = str(error).encode("utf-8")
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error} from {what!r}") from error
        assert said.strip()
        assert time.process_time() - began < SECONDS, what
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before) / 1024 < MEGABYTES, what
        return found


@pytest.mark.parametrize("seed", range(4))
def test_c_yaml_of_fuzzed_recipe_files(seed: int, tmp_path: Path) -> None:
    """300 files in all."""
    draw, held, path = random.Random(seed), Held(), tmp_path / "recipe.yaml"
    for number in range(75):
        text = mutated(draw.choice(texts()), draw)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        recipe = held(partial(Recipe.from_yaml, path), text)
        if recipe is not None:
            # What was taken is written as a file that is the same recipe.
            path.write_text(recipe.to_yaml(), encoding="utf-8")
            assert Recipe.from_yaml(path).to_yaml() == recipe.to_yaml(), (seed, number, text)
    assert held.refused > 30
    assert held.taken > 0


@pytest.mark.parametrize("seed", range(3))
def test_c_yaml_of_fuzzed_settings(seed: int) -> None:
    draw, held, recipe = random.Random(seed), Held(), make("av-digits/kd", [])
    for _ in range(100):
        text = mutated(draw.choice(SETTINGS), draw)
        held(partial(recipe.overridden, [text]), text)
    assert held.refused > 30


@pytest.mark.parametrize("name", NASTY)
def test_c_yaml_that_is_refused(name: str, tmp_path: Path) -> None:
    text, fact = NASTY[name]
    held, path = Held(), tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with raises(RecipeError, fact):
        Recipe.from_yaml(path)
    with raises(SettingError, fact):
        parse_override(f"a={text}")
    assert held.taken == 0


@pytest.mark.parametrize("text", DATES)
def test_c_yaml_dates_are_text(text: str) -> None:
    assert parse_yaml(f"a: {text}") == {"a": text}


def test_c_yaml_aliases_stand_for_what_they_name() -> None:
    """A recipe that was written with them can be read."""
    assert parse_yaml("a: &x [1, {b: 2}]\nc: *x") == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}


def test_c_yaml_out_of_anything_but_a_file(tmp_path: Path, crossdistill: Command) -> None:
    """A pipe would be waited for, and a device never ends."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    device = tmp_path / "zero.yaml"
    device.symlink_to("/dev/zero")
    for path in (pipe, device, tmp_path / "absent.yaml", tmp_path / ("n" * 300 + ".yaml")):
        with pytest.raises(SettingError):
            Recipe.from_yaml(path)
        said = crossdistill("run", path, "--out", tmp_path / "out")
        assert said.status in {1, 2}
        assert "Traceback" not in said.err
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(2**30)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(random.Random(0).randbytes(5_000))
    held = Held()
    for path in (huge, binary):
        held(partial(Recipe.from_yaml, path), str(path))
        held(partial(read_yaml, path), str(path))
    assert held.taken == 0


def test_c_yaml_of_a_run_folder_that_is_no_recipe(tmp_path: Path, crossdistill: Command) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(BOMB)
    for words in (("run", folder, "--resume"), ("run", folder, "--out", tmp_path / "out"), ("eval", folder)):
        said = crossdistill(*words)
        assert said.status in {1, 2}, words
        assert "Traceback" not in said.err


def test_c_yaml_faults_name_their_place_once() -> None:
    with raises(SettingError, "line 2, column 1", "'seed'", "line 1"):
        parse_yaml("seed: 1\nseed: 2\n")
