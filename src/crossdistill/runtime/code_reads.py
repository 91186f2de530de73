"""The names that a function's bytecode reads besides its arguments, and the distribution that code belongs to."""

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
"""The value of a name that is not defined now."""


@dataclass(frozen=True, slots=True)
class Read:
    """One name that a function's code loads: a global, a variable of its closure, or a module that it imports.

    `chain` holds the attributes that are then read in sequence, as in `helper.constants.SCALE`.
    """

    kind: str
    name: str
    chain: tuple[str, ...] = ()
    level: int = 0


def reads_of(code: types.CodeType) -> Iterator[Read]:
    """The reads of this code, and of the code inside it (lambdas, comprehensions, nested functions)."""
    instructions = list(dis.get_instructions(code))
    for at, instruction in enumerate(instructions):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"}:
            kind = "closure" if instruction.opname.endswith("DEREF") else "global"
            yield Read(kind, str(instruction.argval), tuple(_chain(instructions[at + 1 :])))
        elif instruction.opname == "IMPORT_NAME":
            level, names = instructions[at - 2].argval, instructions[at - 1].argval
            for name in names or ("",):
                yield Read("import", str(instruction.argval), (name,) if name and name != "*" else (), int(level or 0))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from reads_of(constant)


def _chain(instructions: list[dis.Instruction]) -> Iterator[str]:
    for instruction in instructions:
        if instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
            yield str(instruction.argval)
        elif instruction.opname not in {"CACHE", "PRECALL"}:
            return


def resolved(read: Read, names: Mapping[str, Any], closure: Mapping[str, Any]) -> tuple[str, Any]:
    """The name and the current value of a read; attributes are followed only through modules."""
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
        # A library's own object is determined by the library's version.
        return name, f"of a library: {name}"
    return name, value


def _attribute(module: types.ModuleType, name: str) -> Any:
    try:
        return getattr(module, name, sys.modules.get(f"{module.__name__}.{name}", MISSING))
    except Exception:  # a module may compute its attributes, and fail in any way
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
"""Namespaces whose functions layers of torch call."""
_AT_IMPORT = [{name: entry for name, entry in vars(space).items() if _is_function(entry)} for space in _NAMESPACES]


def replaced_functions() -> dict[str, Any]:
    """Functions that the program has put in place of torch's own, by name."""
    replaced = {}
    for space, before in zip(_NAMESPACES, _AT_IMPORT, strict=True):
        for name, entry in vars(space).items():
            of_program = isinstance(entry, types.FunctionType) and is_of_program(entry)
            # Parts of torch that are imported later wrap other functions, under the same name or as `__init__`.
            same = name.startswith("__") or getattr(entry, "__name__", name) == name
            other = name in before and entry is not before[name] and not same
            if of_program or other:
                replaced[f"{space.__name__}.{name}"] = entry
    return replaced


@cache
def is_of_program(function: types.FunctionType) -> bool:
    """Whether a function of a namespace or class of a library comes from the program itself; such a function stays."""
    return home_of(function) is None


def home_of(thing: types.ModuleType | type | types.FunctionType) -> str | None:
    """The distribution and version of a module, class or function; None for the user's own code."""
    if isinstance(thing, types.ModuleType):
        return _home(thing.__name__, getattr(thing, "__file__", None))
    if isinstance(thing, types.FunctionType):
        names = thing.__globals__
        return _home(str(names.get("__name__", "")), names.get("__file__"))
    # Classes made in C without a module have their metaclass's descriptor there.
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
        distributions = _distributions().get(top, [])
        # Code without a distribution has no version that identifies it.
        return " ".join(f"{name} {version(name)}" for name in sorted(set(distributions))) or None
    library = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")}
    return python if any(path.is_relative_to(folder) for folder in library) else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _installed() -> tuple[Path, ...]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return tuple(Path(folder).resolve() for folder in [*folders, site.getusersitepackages()])
