"""Settings from text: a path through anything, values that mean what they say, and faults as plain sentences."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from facts import raises
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crossdistill.errors import RecipeError, SettingError
from crossdistill.overrides import GROWS, overridden, parse_override, sentences
from crossdistill.recipes import make


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "part"
    size: int = Field(1, ge=1)
    rate: float = 1e-3
    kind: Literal["round", "square"] = "round"


class Whole(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Part, ...] = (Part(name="first"), Part(name="second-one"))
    numbers: tuple[int, ...] = (1, 2, 3)
    table: Mapping[str, Part] = {"left": Part(), "right": Part(size=2)}
    words: Mapping[str, str] = {}
    growing: Mapping[str, Part] = Field({}, json_schema_extra=GROWS)
    title: str | None = None
    even: bool = True

    @model_validator(mode="after")
    def _not_too_many(self) -> "Whole":
        if self.numbers and sum(self.numbers) > 100:
            raise ValueError(f"the numbers add up to {sum(self.numbers)}, and 100 is the most")
        return self


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1e-3", 0.001),
        ("a=1E5", 100000.0),
        ("a=-2.5e-4", -0.00025),
        ("a=.5e1", 5.0),
        ("a=0.05", 0.05),
        ("a=true", True),
        ("a=null", None),
        ("a=", None),
        ("a=text", "text"),
        ("a=e3", "e3"),
        ("a=1e", "1e"),
        ("a=three", "three"),
        ("a=[1, two]", [1, "two"]),
        ("a={b: 1}", {"b": 1}),
        ("a=b=c", "b=c"),
        ("a= 3", 3),
    ],
)
def test_a_value_is_what_it_says(text: str, value: Any) -> None:
    path, found = parse_override(text)
    assert path == "a"
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["a", "=3", " =3", "a=[1, 2", "a={b: 1"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with raises(SettingError, "FIELD=VALUE" if "[" not in text and "{" not in text else "YAML"):
        parse_override(text)


@pytest.mark.parametrize(
    ("path", "value", "look"),
    [
        ("title", "new", lambda w: w.title == "new"),
        ("title", None, lambda w: w.title is None),
        ("parts.0.size", 7, lambda w: [p.size for p in w.parts] == [7, 1]),
        ("parts.1.size", 7, lambda w: [p.size for p in w.parts] == [1, 7]),
        ("parts.second-one.size", 7, lambda w: [p.size for p in w.parts] == [1, 7]),
        ("parts.first.kind", "square", lambda w: w.parts[0] == Part(name="first", kind="square")),
        ("parts.0", {"name": "other"}, lambda w: w.parts[0] == Part(name="other")),
        ("numbers.2", 9, lambda w: w.numbers == (1, 2, 9)),
        ("numbers", [4], lambda w: w.numbers == (4,)),
        ("table.right.rate", 0.5, lambda w: w.table["right"] == Part(size=2, rate=0.5)),
        ("table.new", {"size": 5}, lambda w: w.table["new"] == Part(size=5) and len(w.table) == 3),
        ("words.hello", "world", lambda w: w.words == {"hello": "world"}),
        ("growing.new.size", 5, lambda w: w.growing == {"new": Part(size=5)}),
    ],
)
def test_a_path_goes_through_fields_mappings_and_sequences(path: str, value: Any, look: Any) -> None:
    before = Whole()
    assert look(overridden(before, path, value))
    assert before == Whole(), "the one that was given stays as it is"


@pytest.mark.parametrize(
    ("path", "value", "facts"),
    [
        ("titel", 1, ("Whole", "'titel'", "'title'")),
        ("parts.first.sise", 1, ("parts.first", "'sise'", "'size'")),
        ("parts.frist.size", 1, ("parts", "'frist'", "'first'", "0 to 1")),
        ("parts.2.size", 1, ("parts", "'2'")),
        ("table.rihgt.size", 1, ("table", "'rihgt'", "'right'")),
        ("title.more", 1, ("title", None, "'more'")),
        ("even.more.still", 1, ("even", True)),
        ("parts.0.size", "big", ("whole number", "'big'")),
        ("parts.0.size", 0, ("at least 1", 0)),
        ("parts.0.rate", "fast", ("number", "'fast'")),
        ("parts.0.kind", "sqare", ("'round' or 'square'", "'sqare'")),
        ("even", "perhaps", ("true or false", "'perhaps'")),
        ("numbers", [200], (200, 100)),
        ("numbers.0", 200, (205,)),
        ("table.left", {"siez": 3}, ("siez",)),
        ("growing.new.siez", 3, ("growing.new", "'siez'", "'size'")),
        ("growing.new.size", 0, ("at least 1", 0)),
    ],
)
def test_a_wrong_setting_says_what_is_possible(path: str, value: Any, facts: tuple[object, ...]) -> None:
    with raises(SettingError, *facts):
        overridden(Whole(), path, value)


def test_every_fault_is_one_sentence_with_its_path() -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"parts": [{"size": 0, "kind": "flat"}], "title": 5, "evn": False, "numbers": [1, "x"]})
    found = sorted(sentences(caught.value))
    assert [line.partition(":")[0] for line in found] == ["evn", "numbers.1", "parts.0.kind", "parts.0.size", "title"]
    assert all("\n" not in line for line in found)


def test_a_recipe_takes_all_its_settings_or_names_all_faults() -> None:
    recipe = make("av-digits/kd", [], 0)
    changed = recipe.overridden(
        ["stages.kd.method.temperature=1e0", "stages.0.epochs=3", "seed=7", "data.labelled=0.1"]
    )
    assert (changed.stages[-1].method.temperature, changed.stages[0].epochs) == (1.0, 3)
    assert (changed.seed, changed.data.labelled) == (7, 0.1)
    with pytest.raises(RecipeError) as caught:
        recipe.overridden(["sed=7", "stages.kd.method.temprature=2", "stages.1.epochs=-1", "seed=3", "nonsense"])
    assert len(caught.value.faults) == 4
    for words in ("did you mean 'seed'", "did you mean 'temperature'", "wanted at least 0, found -1", "FIELD=VALUE"):
        assert any(words in fault for fault in caught.value.faults), words
    assert recipe.seed == 0


def test_a_method_can_be_exchanged_by_name() -> None:
    recipe = make("av-digits/kd", [], 0).overridden(["stages.kd.method=supervised"])
    assert recipe.stages[-1].method.name == "supervised"
    again = recipe.overridden(["stages.kd.method={name: kd, temperature: 2}"])
    assert again.stages[-1].method.model_dump()["temperature"] == 2
