"""What a function reads besides its arguments, from its bytecode; and whose code something is."""

import builtins
import dis
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from crossdistill import __version__


class _Missing:
    def __reduce__(self) -> str:
        return "MISSING"


_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_FOLLOWED = (types.ModuleType, type, _Missing)

MISSING: Any = _Missing()
"""A name that stands for nothing now."""


@dataclass(frozen=True, slots=True)
class Read:
    """One name that a function's code loads: a global, a variable of its closure, or a module that it imports.

    `chain` are the attributes that are read of it one after another: `helper.constants.SCALE`.
    """

    kind: str
    name: str
    chain: tuple[str, ...] = ()
    level: int = 0


def reads_of(code: types.CodeType) -> Iterator[Read]:
    """Everything that this code reads, and the code inside it (lambdas, comprehensions, nested functions)."""
    instructions = list(dis.get_instructions(code))
    for at, one in enumerate(instructions):
        if one.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"}:
            kind = "closure" if one.opname.endswith("DEREF") else "global"
            yield Read(kind, str(one.argval), tuple(_chain(instructions[at + 1 :])))
        elif one.opname == "IMPORT_NAME":
            level, names = instructions[at - 2].argval, instructions[at - 1].argval
            for name in names or ("",):
                yield Read("import", str(one.argval), (name,) if name and name != "*" else (), int(level or 0))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from reads_of(constant)


def _chain(instructions: list[dis.Instruction]) -> Iterator[str]:
    for one in instructions:
        if one.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
            yield str(one.argval)
        elif one.opname not in {"CACHE", "PRECALL"}:
            return


def resolved(read: Read, names: Mapping[str, Any], closure: Mapping[str, Any]) -> tuple[str, Any]:
    """What is read, now, and how it is called: through modules, as far as their attributes go."""
    value: Any = MISSING
    if read.kind == "closure":
        value = closure.get(read.name, MISSING)
    elif read.kind == "import":
        value = sys.modules.get(_absolute(read, names), MISSING)
    elif read.name in names:
        value = names[read.name]
    elif hasattr(builtins, read.name):
        value = getattr(builtins, read.name)
    name, through = read.name, False
    for attribute in read.chain:
        if not isinstance(value, types.ModuleType):
            break
        through = through or home_of(value) is not None
        name, value = f"{name}.{attribute}", _attribute(value, attribute)
    inert = not isinstance(value, (*_FOLLOWED, *_PLAIN)) and not callable(value)
    if through and inert and value is not os.environ:
        # A library's own object is as the library's version makes it.
        return name, f"of a library: {name}"
    return name, value


def _attribute(module: types.ModuleType, name: str) -> Any:
    try:
        return getattr(module, name, sys.modules.get(f"{module.__name__}.{name}", MISSING))
    except Exception:  # a module may compute its attributes
        return MISSING


def _absolute(read: Read, names: Mapping[str, Any]) -> str:
    try:
        package = names.get("__package__") or str(names.get("__name__", "")).rpartition(".")[0]
        return importlib.util.resolve_name("." * read.level + read.name, package) if read.level else read.name
    except ImportError:
        return read.name


def _is_function(entry: Any) -> bool:
    return callable(entry) and not isinstance(entry, type)


_NAMESPACES: tuple[Any, ...] = (torch, torch.nn.functional, torch.Tensor, torch.nn.Module)
"""What layers of torch call."""
_AT_IMPORT = [{name: entry for name, entry in vars(one).items() if _is_function(entry)} for one in _NAMESPACES]


def replaced_functions() -> dict[str, Any]:
    """Functions that the program has put in the place of torch's own, by their names."""
    found = {}
    for where, before in zip(_NAMESPACES, _AT_IMPORT, strict=True):
        for name, entry in vars(where).items():
            own = isinstance(entry, types.FunctionType) and home_of(entry) is None
            # Parts of torch that are imported later wrap functions of others, under the same name or as `__init__`.
            same = name.startswith("__") or getattr(entry, "__name__", name) == name
            other = name in before and entry is not before[name] and not same
            if own or other:
                found[f"{where.__name__}.{name}"] = entry
    return found


def home_of(thing: types.ModuleType | type | types.FunctionType) -> str | None:
    """The distribution and its version that a module, class or function comes from; None for the user's own code."""
    if isinstance(thing, types.ModuleType):
        return _home(thing.__name__, getattr(thing, "__file__", None))
    if isinstance(thing, types.FunctionType):
        own = thing.__globals__
        return _home(str(own.get("__name__", "")), own.get("__file__"))
    # Classes that C makes without a module show their metaclass's descriptor there.
    name = thing.__module__ if isinstance(thing.__module__, str) else ""
    return _home(name, getattr(sys.modules.get(name), "__file__", None))


@cache
def _home(name: str, file: str | None) -> str | None:
    top = name.partition(".")[0]
    if top == "crossdistill":
        return f"crossdistill {__version__}"
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    if file is None:
        return python if top in sys.stdlib_module_names and top != "__main__" else None
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _installed()):
        found = _distributions().get(top, [])
        # Without a distribution there is no version that would tell it from another.
        return " ".join(f"{one} {version(one)}" for one in sorted(set(found))) or None
    library = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")}
    return python if any(path.is_relative_to(folder) for folder in library) else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _installed() -> tuple[Path, ...]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return tuple(Path(folder).resolve() for folder in [*folders, site.getusersitepackages()])
