"""Reading of untrusted YAML settings: plain values only, in bounded time and memory; errors name the line.

Accepted are mappings, lists, text, numbers, true, false and null. Dates stay text. Refused are other tags, repeated
keys, aliases that multiply, control characters and lone surrogates, and files that are too large, deep or long.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from crossdistill.errors import SettingError
from crossdistill.runtime.files import NO_FILE, file_fault

MOST_BYTES = 2**18
"""Largest size of a file in bytes; a recipe has a few thousand."""
MOST_NODES = 10_000
"""Largest number of values, including keys; an alias counts as all values that it repeats."""
MOST_DEPTH = 40
MOST_DIGITS = 40
"""Largest number of characters of a number."""

TAG = "tag:yaml.org,2002:"
PLAIN = {TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
NUMBERS = {TAG + "int", TAG + "float"}
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters other than tab and line ends, and lone surrogates, which encodings and file systems refuse."""


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        OSError: the file cannot be read.
        SettingError: it is not a file, too large, or not YAML of plain values; names the line.
    """
    fault = file_fault(path)
    if fault is not None:
        raise SettingError(f"{path} {fault}" if fault != NO_FILE else f"{fault}: {path}")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise SettingError(f"wanted at most {MOST_BYTES} bytes, found {path.stat().st_size}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"wanted a text in UTF-8; byte {error.start} is not valid") from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        SettingError: the text is too large, or not YAML of plain values; names the line.
    """
    if len(text) > MOST_BYTES:
        raise SettingError(f"wanted at most {MOST_BYTES} characters, found {len(text)}")
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise SettingError(yaml_fault(error)) from error
    except (ValueError, OverflowError) as error:
        # Raised by the scanner for an escape beyond Unicode or a version of thousands of digits.
        raise SettingError(f"it holds an invalid number: {' '.join(str(error).split())[:200]}") from error


def yaml_fault(error: yaml.YAMLError) -> str:
    """The problem with its line and column, on one line."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return " ".join(str(error).split())
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits of depth, size and types."""

    def __init__(self, text: str) -> None:
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}
        """Number of values in each complete node, by its `id`; the node itself included."""
        super().__init__(text)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """PyYAML's method, with limits of depth and size."""
        # PyYAML has no annotations of its own, and its stubs none for this method.
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > MOST_DEPTH:
            raise _refused(f"values are nested more than {MOST_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _refused(f"the alias *{event.anchor} is a part of the value that it repeats", event)
        else:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        if max(self._count, self._sizes[id(node)]) > MOST_NODES:
            raise _refused(f"more than {MOST_NODES} values, counting those that aliases repeat", event)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            ConstructorError: the value is not of a plain type, or exceeds a limit.
        """
        if node.tag not in PLAIN:
            raise _refused(f"a value has the tag {node.tag.replace(TAG, '!!')}; wanted plain values", node)
        if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
            raise _refused(f"a number of {len(node.value)} characters; wanted at most {MOST_DIGITS}", node)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError) as error:
            raise _refused(f"this is not a valid {_kind(node)}", node) from error
        if isinstance(value, str) and NO_TEXT.search(value):
            raise _refused("a text holds control characters or lone surrogates", node)
        return value

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        if not isinstance(node, MappingNode):
            raise _refused("this is not a mapping", node)
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _refused("a key is not a plain value", key_node)
            key = self.construct_object(key_node)
            # In Python, `1` and `True` are the same key.
            if key in seen:
                raise _refused(f"the key {str(key)[:80]!r} is given twice, first in line {seen[key]}", key_node)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


# Text that PyYAML would resolve to other tags (dates, merge keys) stays text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parts(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _kind(node: Node) -> str:
    return node.tag.replace(TAG, "!!")


def _refused(problem: str, at: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, at.start_mark)
