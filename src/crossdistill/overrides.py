"""Typed settings from text: validated `a.b=c` overrides, and one sentence for each fault."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from crossdistill.errors import SettingError, nearest
from crossdistill.runtime.plain_yaml import parse_yaml

GROWS: JsonDict = {"grows": True}
"""As `json_schema_extra` of a mapping field: a path through a missing entry creates the entry."""
KIND: JsonDict = {"kind": True}
"""As `json_schema_extra` of a text field `name`: another name starts from the defaults of that kind."""

Model = TypeVar("Model", bound=BaseModel)


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as its path and its value; the value is YAML, such as `[1, 2]`, `true` or `null`.

    Raises:
        SettingError: `=` or the path is missing, or the value is not valid YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SettingError("wanted FIELD=VALUE, as in --set labelled=0.05")
    try:
        return path.strip(), _number(parse_yaml(value))
    except SettingError as error:
        raise SettingError(f"the value is no YAML: {error}") from error


def _number(value: Any) -> Any:
    """The value, with text such as `1e-3` as a number: YAML 1.1 reads it as text."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def overridden(model: Model, path: str, value: Any) -> Model:
    """A copy with another value of the field at `path`; every level of the path is validated again.

    A path goes through fields, keys of mappings, and positions in sequences (`stages.1`) or, where the elements
    have a `name`, that name (`stages.route`). Where a `name` selects the kind of settings (`method.name`),
    another name starts from the defaults of its kind.

    Raises:
        SettingError: no such field (the message names the nearest), or an invalid value.
    """
    changed = _changed(model, path.split("."), value, ())
    assert isinstance(changed, type(model))
    return changed


def _changed(node: Any, path: Sequence[str], value: Any, above: tuple[str, ...]) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    here = ".".join(above)
    if isinstance(node, BaseModel):
        fields = type(node).model_fields
        shortcuts = _shortcuts(type(node))
        if head in shortcuts:
            return _changed(node, (shortcuts[head], *path), value, above)
        if head not in fields:
            hint = below(node, ".".join(path))
            raise SettingError(
                f"{here or type(node).__name__} has no field {head!r}; {hint}{nearest(head, [*fields, *shortcuts])}"
            )
        current = {name: getattr(node, name) for name in fields}
        says_kind = get_origin(fields[head].annotation) is Literal or fields[head].json_schema_extra == KIND
        if head == "name" and above and says_kind:
            return node if value == current[head] else {"name": value}
        inner = _with_entry(current[head], rest, fields[head])
        current[head] = _changed(inner, rest, value, (*above, head))
        try:
            return type(node).model_validate(current)
        except ValidationError as error:
            raise SettingError("; ".join(_about(error, type(node), current, path))) from error
    if isinstance(node, Mapping):
        if rest and head not in node:
            raise SettingError(f"{here} has no entry {head!r}; {nearest(head, map(str, node))}")
        return {**node, head: _changed(node.get(head), rest, value, (*above, head))}
    if isinstance(node, list | tuple):
        index = _position(node, head, here)
        return tuple(_changed(item, rest, value, (*above, head)) if i == index else item for i, item in enumerate(node))
    raise SettingError(f"{here} is {node!r}, a value without fields, so {head!r} cannot be set")


def below(node: BaseModel, path: str) -> str:
    """A hint where a path exists at a deeper level: "did you mean 'data.split'? "; else empty."""
    deeper = [f"{where}.{path}" for where, inner in _inside(node) if path.partition(".")[0] in type(inner).model_fields]
    return f"did you mean {', '.join(map(repr, deeper[:3]))}? " if deeper else ""


def _inside(node: Any, above: str = "") -> Iterator[tuple[str, BaseModel]]:
    """All settings below these, each with its path."""
    if isinstance(node, BaseModel):
        children: Iterator[tuple[str, Any]] = ((name, getattr(node, name)) for name in type(node).model_fields)
    elif isinstance(node, Mapping):
        children = ((str(key), value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        children = ((str(getattr(value, "name", i)), value) for i, value in enumerate(node))
    else:
        return
    for name, value in children:
        where = f"{above}.{name}" if above else name
        if isinstance(value, BaseModel):
            yield where, value
        yield from _inside(value, where)


def _shortcuts(model: type[BaseModel]) -> Mapping[str, str]:
    """Names, besides its fields, of settings that a model keeps in one of its mappings, by that field."""
    found: Mapping[str, str] = getattr(model, "shortcuts", {})
    return found


def _with_entry(node: Any, path: Sequence[str], field: FieldInfo) -> Any:
    """A mapping that `GROWS`, with the entry of a path: a new entry has the defaults of its kind."""
    if field.json_schema_extra != GROWS or len(path) < 2 or path[0] in node:
        return node
    return {**node, path[0]: get_args(field.annotation)[1]()}


def _about(error: ValidationError, model: type[BaseModel], values: Any, path: Sequence[str]) -> Iterator[str]:
    """The faults of one override; the path is included only where it differs from that of the override."""
    for where, text in explained(error, model, values):
        same = not where or (where[-1] == path[-1] and len(where) <= len(path))
        yield "; ".join(text.splitlines()) if same else f"{'.'.join(where)}: {'; '.join(text.splitlines())}"


def _position(items: Sequence[Any], head: str, here: str) -> int:
    names = [str(item.name) if hasattr(item, "name") else str(i) for i, item in enumerate(items)]
    if re.fullmatch("[0-9]{1,9}", head) and int(head) < len(items):
        return int(head)
    if head in names:
        return names.index(head)
    raise SettingError(f"{here} has no item {head!r}; {nearest(head, names)}, or a position from 0 to {len(items) - 1}")


def sentences(error: ValidationError, model: type[BaseModel] | None = None, values: Any = None) -> list[str]:
    """One line for each fault: the field, the expected and the actual value, and for a wrong name the nearest.

    With the `model` and its `values`, a fault of an unknown field names the nearest existing one.
    """
    return [
        f"{'.'.join(path)}: {text}" if path else text
        for path, texts in explained(error, model, values)
        for text in texts.splitlines()
    ]


def explained(
    error: ValidationError, model: type[BaseModel] | None = None, values: Any = None
) -> list[tuple[tuple[str, ...], str]]:
    """The path and the description of each fault."""
    descriptions: dict[tuple[tuple[str, ...], str], None] = {}
    faults = error.errors(include_url=False)
    for fault in faults:
        loc = fault["loc"]
        inside = any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in faults)
        # Of "settings or a live object", report the settings; a list whose parts fail is not too short.
        if (loc and str(loc[-1]).startswith("is-instance[")) or (fault["type"] == "too_short" and inside):
            continue
        names = _fields(model, values, loc[:-1]) if model is not None else []
        descriptions[tuple(str(part) for part in loc if not _is_choice(str(part))), _sentence(fault, names)] = None
    return list(descriptions)


def _is_choice(part: str) -> bool:
    """Whether a part of a fault's path is pydantic's name for one of several types, not a field."""
    return part.startswith("function-") or bool(re.fullmatch(r"[A-Z]\w*Config|[\w-]+\[.*\]", part))


def _sentence(fault: Any, names: Sequence[str]) -> str:
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    last = str(fault["loc"][-1]) if fault["loc"] else ""
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"there is no such field; {nearest(last, names)}" if names else "there is no such field"
    if kind in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return "is required"
    if kind == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    if kind in {"literal_error", "union_tag_invalid"}:
        options = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        tag = str(context.get("tag", value))
        close = difflib.get_close_matches(tag, options, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"wanted {' or '.join(map(repr, options))}, found {context.get('tag', value)!r}{hint}"
    shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    return f"wanted {_wanted(kind, context, str(fault['msg']))}, found {shown}"


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list, as in [a, b]",
    "list": "a list, as in [a, b]",
    "dict": "a mapping, as in {name: value}",
    "mapping": "a mapping, as in {name: value}",
    "model": "a mapping, as in {name: value}",
    "path": "a path",
}
"""Descriptions of expected values, by the first word of pydantic's type of fault ("float_parsing")."""

_LIMITS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} of them",
    "string_pattern_mismatch": "text of the form {pattern}",
}


def _wanted(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _LIMITS:
        return _LIMITS[kind].format_map(context)
    return _KINDS.get(kind.partition("_")[0], message.removeprefix("Input should be "))


def _fields(model: type[BaseModel], values: Any, path: Sequence[int | str]) -> list[str]:
    """The fields that the settings at `path` can have."""
    models = [model]
    for part in path:
        if isinstance(values, Mapping):
            values = values.get(part, values)
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
        fields = [kind.model_fields[str(part)] for kind in models if str(part) in kind.model_fields]
        inner = [kind for field in fields for kind in _models(field)]
        models = inner or models
    name = values.get("name") if isinstance(values, Mapping) else None
    kinds = [kind for base in models for kind in _subclasses(base) if "name" in kind.model_fields]
    chosen = [kind for kind in kinds if kind.model_fields["name"].default == name]
    return sorted({field for kind in chosen or models for field in (*kind.model_fields, *_shortcuts(kind))})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    annotation = annotation.annotation if hasattr(annotation, "annotation") else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for subclass in model.__subclasses__():
        yield from _subclasses(subclass)
