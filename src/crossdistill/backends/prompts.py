"""Texts that describe classes to a text encoder: templates, names of classes, and their settings."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crossdistill.backends.classes import has_names, plain
from crossdistill.errors import SettingError, nearest
from crossdistill.overrides import sentences
from crossdistill.runtime.files import file_fault

TEMPLATES = (
    *("a photo of a {}", "a blurry photo of a {}", "a cropped photo of a {}", "a close-up photo of a {}"),
    *("a low resolution photo of a {}", "a bright photo of a {}", "a picture of a {}", "a detailed image of a {}"),
    *("a sketch of a {}", "a natural photo of a {} in the wild", "a realistic image of a {}"),
    "a high quality photo of a {}",
)
"""The twelve templates of RichKD's released code (arXiv 2511.09286)."""
PLACE = "{}"
"""The place of the class's name in a template."""
LIBRARIES = ("transformers", "open_clip")
"""Libraries with networks of pictures and texts."""
MOST_BYTES = 2**22
VOWEL = re.compile(r"(?!eu|ewe|one\b|once|uni(?!n)|us[aeiu]|ufo|u-)[aeiou]|hour|honest|honou?r|heir", re.IGNORECASE)
"""The beginning of a word that is spoken with a vowel."""


class ZeroShot(BaseModel):
    """How a network of pictures and texts classifies by the names of the classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zero_shot: bool | None = None
    """True: classify by names, or refuse; false: never; by default a frozen teacher does where classes have names."""
    templates: tuple[str, ...] | Path = TEMPLATES
    """Texts with {} for the name; or a file with one a line, or a JSON list."""
    ensemble: Literal["embedding", "logit", "probability"] = "embedding"
    """What is averaged over templates: embeddings (then normalised), logits, or probabilities."""
    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Factor of the cosines; by default the model's own."""
    logit_bias: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Added to scaled cosines; by default the model's own, 0 where it has none."""
    clean_names: bool = True
    """Write underscores of class names as spaces."""
    articles: bool = True
    """Write `a {}` as `an apple` where the name begins with a vowel, and `an {}` as `a pear`."""
    class_names: Mapping[str, str] | tuple[str, ...] | Path | None = None
    """Words for the data's classes: {class: words}, a list of their names in any order, or a JSON file of either."""

    @field_validator("templates", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,) if PLACE in value or "{" in value or " " in value else Path(value)
        return value

    @field_validator("templates")
    @classmethod
    def _with_place(cls, value: tuple[str, ...] | Path) -> tuple[str, ...] | Path:
        return value if isinstance(value, Path) else checked_templates(value)

    @field_validator("class_names", mode="before")
    @classmethod
    def _file_or_names(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) else value

    @property
    def asked(self) -> bool:
        """Whether any setting says that names are to be compared."""
        return bool(self.model_fields_set) and self.zero_shot is not False

    def all_templates(self) -> tuple[str, ...]:
        """The templates, those of a file read from it.

        Raises:
            SettingError: the file is missing, empty or too large, or one of its templates has no {}.
        """
        if not isinstance(self.templates, Path):
            return self.templates
        text = _read(self.templates, "templates")
        if self.templates.suffix == ".json":
            found = _json(self.templates, text, "templates")
            lines = [str(one) for one in found] if isinstance(found, list) else []
        else:
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        try:
            return checked_templates(lines)
        except ValueError as error:
            raise SettingError(f"{self.templates}: {error}") from error

    def words(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The words for each class of the data, in the data's order.

        Raises:
            SettingError: `class_names` names other classes than the data's, or the data's classes have no names.
        """
        given = self.class_names
        if isinstance(given, Path):
            found = _json(given, _read(given, "class_names"), "class_names")
            if not isinstance(found, dict | list):
                raise SettingError(f"{given}: class_names: wanted {{class: words}} or a list of names")
            given = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else tuple(map(str, found))
        if given is None and not has_names(classes):
            raise SettingError(
                f"zero-shot classification needs names of classes, and the data have {_some(classes)}; give words for "
                "them (class_names={LABEL_0: cat, ...}), or train a last layer instead (tune=head)"
            )
        words = _by_class(given, classes) if given else tuple(classes)
        return tuple(" ".join(one.replace("_", " ").split()) if self.clean_names else one for one in words)

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        """For each template the texts of all classes, in the data's order.

        Raises:
            SettingError: see `all_templates` and `words`.
        """
        words = self.words(classes)
        return [[self._filled(template, word) for word in words] for template in self.all_templates()]

    def _filled(self, template: str, word: str) -> str:
        if self.articles:
            article = "an" if VOWEL.match(word) else "a"
            template = re.sub(r"\b([Aa])n? \{\}", lambda found: f"{found[1]}{article[1:]} {{}}", template)
        return template.replace(PLACE, word)


NAMES = (*ZeroShot.model_fields, "prompt")
"""Settings of zero-shot networks by name; `prompt` is one template."""


def settings_of(options: Mapping[str, Any], who: str) -> ZeroShot:
    """The zero-shot settings among the options of a network.

    Raises:
        SettingError: a value is invalid.
    """
    given = {name: options[name] for name in NAMES if options.get(name) is not None}
    if "prompt" in given:
        if "templates" in given:
            raise SettingError(f"{who}: prompt is one template; give it in templates, or alone")
        given["templates"] = (str(given.pop("prompt")),)
    try:
        return ZeroShot.model_validate(given)
    except ValidationError as error:
        raise SettingError(f"{who}: {'; '.join(sentences(error, ZeroShot, given))}") from error


class TakesZeroShot(BaseModel):
    """A network by name, whose zero-shot settings may stand beside its `model`: they are kept in its `options`."""

    shortcuts: ClassVar[Mapping[str, str]] = dict.fromkeys(NAMES, "options")
    """Names that are settings of a field, by that field."""

    @model_validator(mode="before")
    @classmethod
    def _as_options(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        lifted = {name: value[name] for name in NAMES if name in value}
        options = {**(value.get("options") or {}), **lifted}
        library = str(value.get("model")).partition(":")[0]
        if library in LIBRARIES:
            settings_of(options, str(value.get("model")))
        elif lifted:
            raise ValueError(
                f"{next(iter(lifted))}: {value.get('model')} compares no pictures with texts; networks of "
                f"{' and '.join(f'{one}:NAME' for one in LIBRARIES)} do"
            )
        return {**{k: v for k, v in value.items() if k not in lifted}, "options": options} if lifted else value


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates themselves.

    Raises:
        ValueError: there are none, or one has no {}.
    """
    if not templates:
        raise ValueError("there are no templates; wanted texts such as 'a photo of a {}'")
    without = [one for one in templates if PLACE not in one]
    if without:
        raise ValueError(
            f"the template {without[0]!r} has no {PLACE}, the place of a class's name; wanted texts such as "
            "'a photo of a {}'"
        )
    return tuple(templates)


def _by_class(given: Mapping[str, str] | Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Words for the data's classes: names are compared without case, spaces and punctuation."""
    ours = {plain(name): name for name in classes}
    if isinstance(given, Mapping):
        other = [name for name in given if plain(name) not in ours]
        if other:
            raise SettingError(f"class_names: the data have no class {other[0]!r}; {nearest(other[0], classes)}")
        words = {plain(name): word for name, word in given.items()}
        return tuple(words.get(plain(name), name) for name in classes)
    theirs = {plain(name): name for name in given}
    if set(theirs) != set(ours):
        other = [name for name in given if plain(name) not in ours]
        missing = [name for name in classes if plain(name) not in theirs]
        odd = f"{other[0]!r} is none of them" if other else f"{missing[0]!r} is missing"
        raise SettingError(
            f"class_names: {len(given)} names for the {len(classes)} classes of the data ({_some(classes)}), and {odd}"
            "; a list is compared by name, so give other words as {class: words}"
        )
    return tuple(theirs[plain(name)] for name in classes)


def _read(path: Path, setting: str) -> str:
    fault = file_fault(path)
    if fault is not None:
        raise SettingError(
            f"{setting}: {path}: {fault}; wanted a file"
            + (f", or a text with {PLACE}, as in 'a photo of a {{}}'" if setting == "templates" else "")
        )
    if path.stat().st_size > MOST_BYTES:
        raise SettingError(f"{setting}: {path}: has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingError(f"{setting}: {path}: cannot be read as UTF-8: {error}") from error


def _json(path: Path, text: str, setting: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{setting}: {path}: is no JSON: {' '.join(str(error).split())[:200]}") from error


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
