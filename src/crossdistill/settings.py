"""Typed settings from text: `a.b=c` overrides through the same validation, and every fault as one plain sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from crossdistill.errors import SettingError, nearest

Model = TypeVar("Model", bound=BaseModel)


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as its path and its value; the value is read as YAML, so `[1, 2]`, `true` and `null` are what they say.

    Raises:
        SettingError: there is no `=`, no path, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SettingError(f"--set wants FIELD=VALUE, as in --set data.labelled=0.05; found {text!r}")
    try:
        return path.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise SettingError(f"--set {text!r}: the value is no YAML: {error}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def overridden(model: Model, path: str, value: Any) -> Model:
    """A copy in which the field at `path` has another value; every level on the way is validated again.

    A path goes through fields, keys of mappings, and positions in sequences (`stages.1`) or, where the elements
    have a `name`, that name (`stages.route`).

    Raises:
        SettingError: no such field (says the nearest), or a value that the field does not take.
    """
    changed = _changed(model, path.split("."), value, path)
    assert isinstance(changed, type(model))
    return changed


def _changed(node: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, BaseModel):
        fields = type(node).model_fields
        if head not in fields:
            raise SettingError(f"--set {whole}: {type(node).__name__} has no field {head!r}; {nearest(head, fields)}")
        current = {name: getattr(node, name) for name in fields}
        current[head] = _changed(current[head], rest, value, whole)
        try:
            return type(node).model_validate(current)
        except ValidationError as error:
            raise SettingError("; ".join(f"--set {whole}: {line}" for line in sentences(error))) from error
    if isinstance(node, Mapping):
        if rest and head not in node:
            raise SettingError(f"--set {whole}: no entry is called {head!r}; {nearest(head, map(str, node))}")
        return {**node, head: _changed(node.get(head), rest, value, whole)}
    if isinstance(node, list | tuple):
        index = _position(node, head, whole)
        return tuple(_changed(item, rest, value, whole) if i == index else item for i, item in enumerate(node))
    raise SettingError(f"--set {whole}: nothing lies below {node!r}, so {head!r} cannot be set there")


def _position(items: Sequence[Any], head: str, whole: str) -> int:
    names = [str(item.name) if hasattr(item, "name") else str(i) for i, item in enumerate(items)]
    if head.isdigit() and int(head) < len(items):
        return int(head)
    if head in names:
        return names.index(head)
    raise SettingError(f"--set {whole}: no element is called {head!r}; {nearest(head, names)} (or 0-{len(items) - 1})")


def sentences(error: ValidationError) -> list[str]:
    """One line for each fault: field, what was wanted, what was found, and after a wrong name the nearest."""
    return [line for fault in error.errors(include_url=False) for line in _sentence(fault).splitlines()]


def _sentence(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("function-", "is-instance")))
    where = f"{path}: " if path else ""
    if fault["type"] == "extra_forbidden":
        return f"{where}there is no such field"
    if fault["type"] == "missing":
        return f"{where}is required"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] == "value_error":
        return f"{where}{message}"
    found = repr(fault["input"])
    shown = found if len(found) < 80 else f"a {type(fault['input']).__name__}"
    return f"{where}wanted {message}, found {shown}"
