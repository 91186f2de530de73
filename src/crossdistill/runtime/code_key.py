"""Keys of code: hashes that stay equal between processes while the code and all that it reads are unchanged.

The key of a function covers its bytecode, its defaults, its closure, and the globals that it reads (functions and
modules included), recursively through the user's own code. The key of an object covers its class and its attributes.
Code of an installed distribution is represented by the distribution's name and version.
"""

import enum
import functools
import logging
import os
import random
import re
import types
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, fx, nn

from crossdistill.runtime.code_reads import MISSING, home_of, is_of_program, reads_of, replaced_functions, resolved
from crossdistill.runtime.hashing import key_hash, tensor_hash

PLAIN = (type(None), bool, int, str, bytes, complex, type(...), type(NotImplemented))
NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, re.Pattern, range, slice, PurePath)
"""Types whose `str` describes a value completely."""
CHANGING = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""Types of random generators, whose state changes with each use."""
KNOWN_AS = {
    "crossdistill.autograd.factored": "crossdistill.factored_gradient",
    "crossdistill.autograd.immediate": "crossdistill.immediate",
    "crossdistill.data.sampler": "crossdistill.order",
    "crossdistill.methods.feature_method": "crossdistill.taps",
    "crossdistill.methods.layer_choice": "crossdistill.taps",
    "crossdistill.methods.logit_method": "crossdistill.combination",
    "crossdistill.methods.logit_shapes": "crossdistill.combination",
    "crossdistill.methods.loss_weights": "crossdistill.protocol",
    "crossdistill.runtime.distributed": "crossdistill.devices",
    "crossdistill.runtime.hashing": "crossdistill.order",
}
"""Names in keys of modules of this package that were moved: their names before the move, so that keys stay valid."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
OF_MODULES = frozenset(vars(nn.Module())) | {"_is_fx_tracing", "_compiled_call_impl"}
"""Attributes that torch keeps in each module; weights are in the fingerprint, layers and hooks are separate parts."""
OF_CLASSES = frozenset(
    re.findall(
        r"\w+",
        "__module__ __qualname__ __doc__ __dict__ __weakref__ __annotations__ __annotate__ __annotate_func__ "
        "__annotations_cache__ __firstlineno__ __static_attributes__ __parameters__ __orig_bases__ "
        "__abstractmethods__ _abc_impl __dataclass_fields__ __dataclass_params__ __match_args__ __signature__ "
        "__class_vars__ __private_attributes__ model_fields model_computed_fields",
    )
)
"""Attributes that Python, dataclasses and pydantic add to a class besides its methods and values."""
DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)


@dataclass(frozen=True, slots=True)
class CodeKey:
    """Hashes of the parts of some code, by their paths, and the parts without a key, with the reasons."""

    parts: Mapping[str, str]
    faults: Mapping[str, str]
    own: bool
    """Whether any part is the user's own code, that is, of no installed distribution."""
    outside: Mapping[int, str]
    """Paths of weights that the code reads and that no keyed module holds, by the `id` of the weight."""

    def text(self, without: Collection[str] = ()) -> str:
        """One hash of all parts except `without`."""
        return key_hash({path: part for path, part in self.parts.items() if path not in without})

    def changed(self, other: "CodeKey") -> list[str]:
        """Paths of the parts in which another key of the same objects differs from this one."""
        both = {**self.parts, **other.parts}
        return [path for path in both if self.parts.get(path) != other.parts.get(path)]


class Keyed:
    """A callable with a key that its user gives, in place of the key of its code."""

    def __init__(self, call: Callable[..., Any], key: str) -> None:
        self.call, self.key = call, key

    def __deepcopy__(self, memo: dict[int, Any]) -> "Keyed":
        return self


def code_key(**things: Any) -> CodeKey:
    """The key of functions, classes and objects, each under its own name.

    Weights in the `state_dict` of a module are covered by its fingerprint; all other state is part of the key.
    """
    walk = _Walk()
    for thing in things.values():
        if isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule):
            for name, value in thing.state_dict(keep_vars=True).items():
                walk.weights.setdefault(id(value), name)
    for name, thing in things.items():
        walk.part(name, thing)
    replaced = replaced_functions()
    if replaced:
        # Layers of torch call replaced functions, and their own code is not followed.
        walk.own = True
        walk.part("replaced", replaced)
    return CodeKey(walk.parts, walk.faults, walk.own, walk.outside)


class _Walk:
    """One traversal of all dependencies of some objects; each object is described where it is reached first."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self.weights: dict[int, str] = {}
        self.outside: dict[int, str] = {}
        self.own = False
        self._met: dict[int, tuple[str, Any]] = {}

    def part(self, path: str, value: Any) -> Any:
        """Describe a value as a part with its own path; returns the path."""
        try:
            self.parts[path] = key_hash(self._described(value, path))
        except RecursionError:
            self.parts[path] = key_hash(self._fault(path, value, "is nested too deeply to be keyed"))
        return path

    def _fault(self, path: str, value: Any, why: str = "has no stable value") -> Any:
        self.faults[path] = f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which {why}"
        return ["unkeyed", type(value).__qualname__]

    def _described(self, value: Any, path: str) -> Any:
        if type(value) in PLAIN:
            return [type(value).__name__, repr(value)]
        if type(value) is float:
            return ["float", value.hex()]
        if isinstance(value, enum.Enum):
            return [self._described(type(value), f"{path}.__class__"), value.name]
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return self._numbers(value, path)
        if isinstance(value, CHANGING):
            return self._fault(path, value, "changes with each use")
        if value is os.environ or value is os.getenv:
            return self._fault(path, value, "reads the environment of the process")
        if isinstance(value, NAMED):
            return [type(value).__name__, str(value)]
        if id(value) in self._met:
            return ["again", self._met[id(value)][0]]
        # Keep a reference, so that the id is not reused for another object.
        self._met[id(value)] = (path, value)
        return self._structured(value, path)

    def _structured(self, value: Any, path: str) -> Any:
        followed: list[tuple[Any, Callable[[Any, str], Any]]] = [
            (Keyed, lambda v, _: ["keyed", v.key]),
            (types.ModuleType, self._module),
            (type, self._class),
            (types.FunctionType, self._function),
            (types.MethodType, lambda v, p: [self._described(v.__func__, p), self._described(v.__self__, f"{p}.self")]),
            (types.BuiltinFunctionType, self._builtin),
            (functools.partial, lambda v, p: [self._described(x, p) for x in (v.func, v.args, v.keywords)]),
            ((staticmethod, classmethod), lambda v, p: [type(v).__name__, self._described(v.__func__, p)]),
            (property, lambda v, p: [self._described(x, f"{p}.{i}") for i, x in enumerate((v.fget, v.fset, v.fdel))]),
            (weakref.ref, lambda v, p: self._described(v(), p)),
            (logging.Logger, lambda v, p: ["logger", v.name]),
            (torch.jit.ScriptModule, lambda v, p: self._fault(p, v, "is TorchScript, whose code is not Python's")),
            (nn.Module, self._network),
            ((tuple, list, Mapping, set, frozenset), self._container),
        ]
        for kinds, describe in followed:
            if isinstance(value, kinds):
                return describe(value, path)
        if hasattr(value, "__wrapped__") and isinstance(value, functools._lru_cache_wrapper):
            return ["cached", self._described(value.__wrapped__, path)]
        return self._object(value, path)

    def _numbers(self, value: Any, path: str) -> Any:
        if id(value) in self.weights:
            return ["weight", self.weights[id(value)]]
        if isinstance(value, nn.Parameter) and value.requires_grad:
            self.outside[id(value)] = path
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta:
                return self._fault(path, value, f"is {value.layout} on {value.device.type}")
            return ["tensor", str(value.dtype), list(value.shape), tensor_hash(value)]
        array = np.asarray(value)
        if array.dtype.hasobject:
            return ["array", list(array.shape), self._described(array.tolist(), path)]
        return ["array", array.dtype.str, list(array.shape), key_hash(array.tobytes().hex())]

    def _container(self, value: Any, path: str) -> Any:
        kind = type(value)
        described: list[Any] = [kind.__qualname__ if home_of(kind) else self._described(kind, f"{path}.__class__")]
        if isinstance(value, Mapping):
            items = list(value.items())
            described += [[self._described(k, f"{path} key"), self._described(v, f"{path}[{k!r}]")] for k, v in items]
        elif isinstance(value, set | frozenset):
            # The order of a set differs between processes.
            described.append(sorted(key_hash(_alone(self, item, path)) for item in value))
        else:
            described += [self._described(item, f"{path}[{number}]") for number, item in enumerate(value)]
        attributes = getattr(value, "__dict__", None)
        return [*described, self._attributes(attributes, path)] if attributes else described

    def _module(self, value: types.ModuleType, path: str) -> Any:
        home = home_of(value)
        if home:
            return ["module", home, KNOWN_AS.get(value.__name__, value.__name__)]
        # The module object itself is used, so that any of its attributes may be read.
        return ["module", self._attributes({k: v for k, v in vars(value).items() if not k.startswith("__")}, path)]

    def _class(self, value: type, path: str) -> Any:
        home = home_of(value)
        entries = {name: entry for name, entry in vars(value).items() if not isinstance(entry, DESCRIPTORS)}
        if home:
            # Methods of the library, in the class or its bases, that the program has replaced.
            replaced: dict[str, Any] = {}
            for base in value.__mro__:
                if base.__module__ != "builtins" and home_of(base):
                    replaced = {
                        **{
                            n: e
                            for n, e in vars(base).items()
                            if isinstance(e, types.FunctionType) and is_of_program(e)
                        },
                        **replaced,
                    }
            module = KNOWN_AS.get(value.__module__, value.__module__)
            return ["class", home, module, value.__qualname__, self._attributes(replaced, path)]
        self.own = True
        fields = value.model_fields if issubclass(value, BaseModel) else {}
        values = {name: [_default(field.default), _default(field.default_factory)] for name, field in fields.items()}
        kept = {n: e for n, e in entries.items() if n not in OF_CLASSES and not n.startswith("__pydantic")}
        bases = [self._described(base, f"{path}.{base.__qualname__}") for base in value.__bases__]
        meta = None if home_of(type(value)) else self._described(type(value), f"{path}.__class__")
        defaults = self._attributes(values, f"{path}.fields")
        return ["class", value.__qualname__, bases, meta, defaults, self._attributes(kept, path)]

    def _function(self, value: types.FunctionType, path: str) -> Any:
        cells = dict(zip(value.__code__.co_freevars, map(_content, value.__closure__ or ()), strict=True))
        home = home_of(value)
        if home:
            # A decorator of a library closes over the user's function.
            followed = (types.FunctionType, types.MethodType, functools.partial, type, *PLAIN)
            cells = {name: cell for name, cell in cells.items() if isinstance(cell, followed)}
            module = str(value.__globals__.get("__name__"))
            name = f"{KNOWN_AS.get(module, module)}.{value.__code__.co_qualname}"
            return ["function", home, name, self._attributes(cells, path)]
        self.own = True
        reads: dict[str, Any] = {}
        for read in reads_of(value.__code__):
            name, current = resolved(read, value.__globals__, cells)
            if read.kind == "import" and current is MISSING:
                self.faults[f"{path}:{name}"] = f"{path} imports {name}, which is not imported yet"
            reads[name] = current
        # A module in the closure is represented only by the attributes that are read from it.
        reads |= {name: cell for name, cell in cells.items() if not isinstance(cell, types.ModuleType)}
        return [
            "function",
            self._code(value.__code__, path),
            self._described(value.__defaults__, f"{path} defaults"),
            self._described(value.__kwdefaults__, f"{path} defaults"),
            self._attributes(vars(value), path),
            self._attributes(reads, path, ":"),
        ]

    def _code(self, code: types.CodeType, path: str) -> Any:
        constants = [
            self._code(value, path) if isinstance(value, types.CodeType) else self._described(value, path)
            for value in code.co_consts
        ]
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        numbers = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        return [code.co_code.hex(), code.co_exceptiontable.hex(), constants, names, numbers]

    def _builtin(self, value: types.BuiltinFunctionType, path: str) -> Any:
        holder = value.__self__
        if holder is None or isinstance(holder, types.ModuleType | type):
            return ["builtin", getattr(holder, "__name__", None), str(value.__module__), value.__qualname__]
        return ["builtin", value.__qualname__, self._described(holder, f"{path}.self")]

    def _network(self, value: nn.Module, path: str) -> Any:
        if isinstance(vars(value).get("_modules", {}).get("_orig_mod"), nn.Module):
            return ["compiled", self._described(value._modules["_orig_mod"], path)]
        kind = self._described(type(value), f"{path}.__class__")
        if isinstance(value, fx.GraphModule):
            kind = ["traced", value.code]
        state = {name: entry for name, entry in vars(value).items() if name not in OF_MODULES and name != "_graph"}
        state |= {name: list(vars(value).get(name, {}).values()) for name in HOOKS if vars(value).get(name)}
        weights = {**value._parameters, **value._buffers}
        described = {
            name: None if weight is None else self._numbers(weight, f"{path}.{name}")
            for name, weight in weights.items()
        }
        # Layers run in the order in which they were added.
        order = list(value._modules)
        return ["network", kind, described, order, self._attributes({**state, **value._modules}, path)]

    def _object(self, value: Any, path: str) -> Any:
        kind = type(value)
        slots = [name for base in kind.__mro__ for name in _words(vars(base).get("__slots__", ()))]
        state = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
        attributes = getattr(value, "__dict__", {})
        try:
            # The default refuses objects that hold more than their attributes.
            make, *rest = value.__reduce_ex__(4)
        except Exception:  # `__reduce_ex__` of an object may raise anything
            return self._fault(path, value)
        described = [self._described(kind, f"{path}.__class__"), self._attributes({**state, **attributes}, path)]
        if any(getattr(kind, name) is not getattr(object, name) for name in ("__reduce_ex__", "__reduce__")):
            parts = [make, *(list(part) if hasattr(part, "__next__") else part for part in rest)]
            described += [self._described(part, path) for part in parts]
        return ["object", *described]

    def _attributes(self, values: Mapping[str, Any], path: str, between: str = ".") -> Any:
        """Paths of the values in the order of their names, each described as its own part."""
        return [self.part(f"{path}{between}{name}", values[name]) for name in sorted(values)]


def _alone(walk: _Walk, value: Any, path: str) -> Any:
    """A description that does not depend on the objects reached before."""
    fresh = _Walk()
    fresh.weights = walk.weights
    described = fresh._described(value, path)
    walk.faults |= fresh.faults
    walk.outside |= fresh.outside
    return [described, fresh.parts]


def _default(value: Any) -> Any:
    return "required" if type(value).__name__ == "PydanticUndefinedType" else value


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _words(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
