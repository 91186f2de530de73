"""Reads plain values and arrays from pickle files by an own reader of few opcodes, so that no code of a file is run.

`pickle.Unpickler` with a narrow `find_class` would still call numpy's constructors and `__setstate__` with values of
the file. Here an opcode only moves values, and the four functions that such files name (numpy's `_reconstruct`,
`ndarray` and `dtype`, and `_codecs.encode`) are never called: their arguments are checked and read as an array or as
bytes.
"""

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError

DTYPES = re.compile(r"[|<>=]?(?:[iu][1248]|f[248]|b1)")
FUNCTIONS = {
    f"{module} {name}": name
    for modules, name in (
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct"),
        (("numpy",), "ndarray"),
        (("numpy",), "dtype"),
        (("_codecs",), "encode"),
    )
    for module in modules
}
"""The names that a file may hold, as "module name"."""
LONGEST_NAME = 200


@dataclass
class _Named:
    """A function that the file names; it is not called."""

    name: str


@dataclass
class _DType:
    """The type of an array: its code, and the byte order that the file sets later."""

    code: str

    def set(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2 and _text(state[1]) in tuple("|<>=")):
            raise ValueError("the state of a dtype is none of a number type")
        self.code = _text(state[1]) + self.code.lstrip("|<>=")


@dataclass
class _Array:
    """An array, whose content the file sets after it has named it."""

    values: list[NDArray[Any]] = field(default_factory=list)

    def set(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _DType)):
            raise ValueError("the state of an array is not (version, shape, dtype, order, bytes)")
        _, shape, dtype, fortran, content = state
        if not (isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)):
            raise ValueError(f"the shape of an array is {shape!r}")
        if not isinstance(content, bytes) or not DTYPES.fullmatch(dtype.code):
            raise ValueError(f"an array of the type {dtype.code[:20]!r} holds {type(content).__name__}")
        kind = np.dtype(dtype.code)
        if len(content) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} and type {kind} has {len(content):,} bytes")
        self.values = [np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")]


def read_plain(content: bytes, where: str) -> Any:
    """The value of a pickle: dicts, lists, tuples, numbers, bytes, texts and arrays of numbers.

    Strings of Python 2 come as bytes. `where` begins the text of an error.

    Raises:
        DataError: truncated, no pickle, or one that holds other objects; says the byte and the object.
    """
    reader = _Reader(content)
    try:
        return _plain(reader.value(), {})
    except (ValueError, LookupError, TypeError, struct.error, RecursionError) as error:
        raise DataError(
            f"{where}: truncated, or not a file of plain values and arrays (byte {reader.at:,} of {len(content):,}): "
            f"{error}; nothing of it was run. Take the file from its official archive"
        ) from error


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """A value with its arrays in the place of what was built for them; `done`: values that occur twice stay one."""
    if isinstance(value, _Named | _DType):
        raise TypeError(f"it holds {value}")
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = None
        if isinstance(value, _Array):
            made: Any = value.values[0]
        elif isinstance(value, dict):
            made = {key: _plain(item, done) for key, item in value.items()}
        else:
            made = type(value)(_plain(item, done) for item in value)
        done[id(value)] = made
    return done[id(value)]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise TypeError(f"wanted a text, found {type(value).__name__}")
    return value


class _Reader:
    """The machine of a pickle: a stack with marks, and a memo."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def value(self) -> Any:
        while (code := self.take(1)) != b".":
            action = ACTIONS.get(code)
            if action is None:
                raise ValueError(f"the opcode {code!r} builds other objects")
            action(self)
        value = self.pop()
        if self.stack or self.marks:
            raise ValueError("it ends with values that belong to nothing")
        return value

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.content):
            raise ValueError("its end is missing")
        taken, self.at = self.content[self.at : end], end
        return taken

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def line(self) -> str:
        end = self.content.find(b"\n", self.at, self.at + LONGEST_NAME)
        if end < 0:
            raise ValueError("the name of an object has no end")
        return self.take(end + 1 - self.at)[:-1].decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is missing")
        return self.stack.pop()

    def last(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def name(self, module: str, name: str) -> None:
        known = FUNCTIONS.get(f"{module} {name}")
        if known is None:
            raise ValueError(f"it names {module[:60]}.{name[:60]}, which such a file does not hold")
        self.push(_Named(known))

    def reduce(self) -> None:
        arguments, made = self.pop(), self.pop()
        if not isinstance(made, _Named) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no function")
        if made.name == "dtype" and arguments:
            self.push(_DType(_text(arguments[0])))
        elif made.name == "encode" and len(arguments) == 2 and _text(arguments[1]) == "latin1":
            self.push(_text(arguments[0]).encode("latin1"))
        elif made.name == "_reconstruct" and arguments and arguments[0] == _Named("ndarray"):
            self.push(_Array())
        else:
            raise ValueError(f"{made.name} with other arguments than those of an array of numbers")

    def build(self) -> None:
        state, built = self.pop(), self.last()
        if not isinstance(built, _Array | _DType):
            raise TypeError(f"a state for {type(built).__name__}")
        built.set(state)

    def add_items(self, pairs: list[Any]) -> None:
        into = self.last()
        if not isinstance(into, dict) or len(pairs) % 2:
            raise TypeError("entries of something that is no mapping")
        into.update(zip(map(_key, pairs[::2]), pairs[1::2], strict=True))

    def add_values(self, values: list[Any]) -> None:
        into = self.last()
        if not isinstance(into, list):
            raise TypeError("values of something that is no list")
        into.extend(values)

    def pair(self) -> list[Any]:
        value, key = self.pop(), self.pop()
        return [key, value]

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def remember(self, number: int) -> None:
        self.memo[number] = self.last()


def _key(key: Any) -> Any:
    if not isinstance(key, bytes | str | int):
        raise TypeError(f"a key of the type {type(key).__name__}")
    return key


def _swapped_name(reader: _Reader) -> None:
    name, module = _text(reader.pop()), _text(reader.pop())
    reader.name(module, name)


def _bytes(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.take(reader.number(form)))


def _text_of(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.take(reader.number(form)).decode("utf-8", "surrogatepass"))


def _integer(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.number(form))


ACTIONS: Mapping[bytes, Callable[[_Reader], None]] = {
    b"\x80": lambda reader: _protocol(reader.number("<B")),
    b"\x95": lambda reader: _protocol(0 * reader.number("<Q")),
    b"(": lambda reader: reader.marks.append(len(reader.stack)),
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"K": _integer("<B"),
    b"M": _integer("<H"),
    b"J": _integer("<i"),
    b"\x8a": lambda reader: reader.push(int.from_bytes(reader.take(reader.number("<B")), "little", signed=True)),
    b"G": lambda reader: reader.push(struct.unpack(">d", reader.take(8))[0]),
    b"U": _bytes("<B"),
    b"T": _bytes("<i"),
    b"C": _bytes("<B"),
    b"B": _bytes("<I"),
    b"\x8e": _bytes("<Q"),
    b"\x8c": _text_of("<B"),
    b"X": _text_of("<I"),
    b"]": lambda reader: reader.push([]),
    b"}": lambda reader: reader.push({}),
    b")": lambda reader: reader.push(()),
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"t": lambda reader: reader.push(tuple(reader.since_mark())),
    b"a": lambda reader: reader.add_values([reader.pop()]),
    b"e": lambda reader: reader.add_values(reader.since_mark()),
    b"s": lambda reader: reader.add_items(reader.pair()),
    b"u": lambda reader: reader.add_items(reader.since_mark()),
    b"q": lambda reader: reader.remember(reader.number("<B")),
    b"r": lambda reader: reader.remember(reader.number("<I")),
    b"\x94": lambda reader: reader.remember(len(reader.memo)),
    b"h": lambda reader: reader.push(reader.memo[reader.number("<B")]),
    b"j": lambda reader: reader.push(reader.memo[reader.number("<I")]),
    b"c": lambda reader: reader.name(reader.line(), reader.line()),
    b"\x93": _swapped_name,
    b"R": lambda reader: reader.reduce(),
    b"b": lambda reader: reader.build(),
}
"""What each opcode does; any other one ends the reading."""


def _protocol(number: int) -> None:
    if number > 5:
        raise ValueError(f"protocol {number}")
