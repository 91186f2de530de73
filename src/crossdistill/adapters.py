"""Between a module and what runs it: types of its inputs and outputs, and which of its results are logits."""

import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from crossdistill.batch import Batch, Input
from crossdistill.errors import SettingError, ShapeError, SignalError, nearest

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh),
)
"""Layers that act on each value by itself."""

LOW = frozenset({torch.float16, torch.bfloat16})
"""Types of weights whose outputs are given in float32."""


Adapter = TypeVar("Adapter")


def renamed(before: str, old: Adapter | None, name: str, new: Adapter | None) -> Adapter | None:
    """The value of an argument that had another name, which is accepted with a warning.

    Raises:
        SettingError: both names were given.
    """
    if old is None:
        return new
    if new is not None:
        raise SettingError(f"{before} is the old name of {name}; give {name} alone")
    warnings.warn(f"{before}= is called {name}= now; the old name goes with version 0.2", DeprecationWarning, 3)
    return old


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A fractional tensor in another type; anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def detached_values(module: nn.Module) -> dict[int, Tensor]:
    """What a module keeps of a pass, by identity, as copies without a graph; and other buffers for those without size.

    A deep copy is refused both of values that a graph holds and of buffers of lazy layers.
    """
    found: dict[int, Tensor] = {}
    for layer in module.modules():
        for value in tensors_in(list(vars(layer).values())):
            if isinstance(value, UninitializedBuffer):
                make: Any = type(value)
                found[id(value)] = make(False, value.device, value.dtype)
            elif not value.is_leaf:
                found[id(value)] = value.detach().clone()
    return found


@contextmanager
def closures_of_copy(module: nn.Module, functions: Iterable[Any], memo: dict[int, Any]) -> Iterator[None]:
    """While a module is copied with this memo: functions that close over one of its layers close over its copy.

    A deep copy keeps a function as it is, so that a hook of the copy would run and change the original.
    """
    layers = {id(layer) for layer in module.modules()}
    kept = (value for layer in module.modules() for value in vars(layer).values())
    cells: dict[int, tuple[types.CellType, types.CellType]] = {}
    for function in [*_functions_in(kept), *_functions_in(functions)]:
        own = function.__closure__ or ()
        if id(function) not in memo and any(id(content_of(cell)) in layers for cell in own):
            of_layers = [cell for cell in own if id(content_of(cell)) in layers]
            cells |= {id(cell): (cell, types.CellType()) for cell in of_layers if id(cell) not in cells}
            closure = tuple(cells[id(cell)][1] if id(cell) in cells else cell for cell in own)
            code, names = function.__code__, function.__globals__
            copied = types.FunctionType(code, names, function.__name__, function.__defaults__, closure)
            copied.__kwdefaults__ = function.__kwdefaults__
            copied.__dict__.update(vars(function))
            memo[id(function)] = copied
    yield
    for cell, copied_cell in cells.values():
        copied_cell.cell_contents = memo[id(cell.cell_contents)]


def content_of(cell: types.CellType) -> Any:
    """What a variable of a closure stands for; None where it stands for nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _functions_in(values: Iterable[Any], depth: int = 2) -> Iterator[types.FunctionType]:
    """Functions among some values, and in their lists, tuples and mappings."""
    for value in values:
        if isinstance(value, types.FunctionType):
            yield value
        elif depth and isinstance(value, Mapping):
            yield from _functions_in(list(value.values()), depth - 1)
        elif depth and isinstance(value, list | tuple):
            yield from _functions_in(value, depth - 1)


def first_rows(value: Any) -> Any:
    """A tensor with its first row in the place of each."""
    return value[:1].expand_as(value).clone() if isinstance(value, Tensor) and value.ndim else value


def tensors_in(values: Iterable[Any], depth: int = 4) -> Iterator[Tensor]:
    """Tensors among some values, and in their lists, tuples and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, Mapping):
            yield from tensors_in(list(value.values()), depth - 1)
        elif depth and isinstance(value, list | tuple):
            yield from tensors_in(value, depth - 1)


def default_give(result: Any, who: str) -> Mapping[str, Tensor | None]:
    """Logits and embedding out of a tensor, a tuple or a mapping such as transformers' ModelOutput.

    Raises:
        SignalError: nothing of that kind was found; says to pass `output_adapter=`.
    """
    if isinstance(result, Tensor):
        return {"logits": result}
    if isinstance(result, Mapping):
        logits = result.get("logits")
        embedding = next((result[k] for k in ("embedding", "pooler_output") if result.get(k) is not None), None)
        if embedding is None and isinstance(result.get("last_hidden_state"), Tensor):
            embedding = result["last_hidden_state"].mean(1)
        if logits is not None or embedding is not None:
            return {"logits": logits, "embedding": embedding}
    if isinstance(result, tuple) and result and all(isinstance(part, Tensor) for part in result[:2]):
        return {"logits": result[0], "embedding": result[1] if len(result) > 1 else None}
    raise SignalError(
        f"network {who!r} returned a {type(result).__name__}, out of which no logits or embedding could be read; "
        "pass output_adapter=, a function from that result to {'logits': tensor, 'embedding': tensor}"
    )


def check_arguments(
    module: nn.Module | None,
    factory: Callable[[], Any] | None,
    reads: Sequence[str],
    needs: str,
    absent: Mapping[str, Tensor],
) -> None:
    """Refuse what a Network cannot be made of.

    Raises:
        SettingError: all faults together.
    """
    who = type(module).__name__ if module is not None else getattr(factory, "__qualname__", "a network")
    faults = []
    if (module is None) == (factory is None):
        faults.append("wanted a module or a factory, one of the two: Network(module, reads=...)")
    elif not (isinstance(module, nn.Module) if factory is None else callable(factory)):
        faults.append(f"wanted a torch module, found a {type(module or factory).__name__}")
    if not reads:
        faults.append("nothing says what it reads: Network(module, reads=...) with modalities of the data")
    if needs not in {"all", "any"}:
        faults.append(f"needs: wanted 'all' or 'any', found {needs!r}")
    if absent and needs != "any":
        faults.append("absent: it is read where needs is 'any'")
    faults += [f"absent: it does not read {name!r}; {nearest(name, reads)}" for name in absent if name not in reads]
    if faults:
        raise SettingError(f"network {who!r}: {'; '.join(faults)}")


def usable(batch: Batch, reads: Sequence[str], needs: str, absent: Mapping[str, Tensor]) -> tuple[Tensor | None, Batch]:
    """Which rows have what a network needs (None: all), and the batch of these alone.

    An input that is not there is never read: the network gets `absent` in its place, or zeros.
    """
    every, some = batch.rows_with(reads), batch.rows_with_any(reads)
    present = every if needs == "all" else some
    rows = None if present is None else present.nonzero().flatten()
    part = batch if rows is None else batch.select(rows)
    if needs == "all" or every is None:
        return rows, part
    filled = {name: _filled(name, part, absent.get(name)) for name in reads if name in part.present}
    return rows, replace(part, inputs={**part.inputs, **filled})


def _filled(name: str, batch: Batch, absent: Tensor | None) -> Input:
    value, there = batch.inputs[name], batch.present[name]
    if not isinstance(value, Tensor):
        raise SettingError(f"needs='any' fills inputs of one tensor, and {name!r} has {', '.join(value)}")
    instead = value.new_zeros(()) if absent is None else absent.to(value)
    return value.where(there.reshape(-1, *[1] * (value.ndim - 1)), instead)


def refused_input(who: str, reads: Sequence[str], given: Sequence[Tensor], module: nn.Module, error: str) -> ShapeError:
    """The error of a module that refuses its input: who, which shapes, and what to do about types."""
    shapes = ", ".join(str(tuple(one.shape)) for one in given)
    return ShapeError(
        f"network {who!r} refused its input: {', '.join(reads)} of shape {shapes} (batch first): "
        f"{' '.join(error.split())}{_type_hint(reads, given, module, error)}"
    )


def _type_hint(reads: Sequence[str], given: Sequence[Tensor], module: nn.Module, error: str) -> str:
    """What to do with inputs whose type is not the weights', where that is what a module refused."""
    types = {p.dtype: p for p in module.parameters() if p.is_floating_point()}
    if not types or not re.search(r"type|not implemented for|Byte|Half|Long|Float|Double", error):
        return ""
    if len(types) > 1:
        return f"; its weights are {' and '.join(sorted(map(_type, types.values())))}: make them one type"
    (weight,) = types.values()
    names = reads if len(reads) == len(given) else [f"input {i}" for i in range(len(given))]
    return "".join(
        f"; {name!r} is {_type(value)} and the weights are {_type(weight)}: {_conversion(value, weight)}"
        for name, value in zip(names, given, strict=True)
        if value.dtype != weight.dtype
    )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _conversion(value: Tensor, weight: Tensor) -> str:
    """How to make one input what the weights are, before the data set is made of it."""
    if value.is_floating_point() or value.dtype == torch.bool:
        return f"convert it to {_type(weight)}"
    top = {torch.uint8: 255, torch.uint16: 65535}.get(value.dtype)
    scale = f"divide it by {top}" if top else "scale it to the range that the network expects, such as [0, 1]"
    return f"convert it to {_type(weight)} and {scale}"


@torch.no_grad()
def activated(module: nn.Module, features: Mapping[str, Tensor]) -> dict[str, str]:
    """Taps whose activation is tapped too: the same values come out when it is applied to them."""
    found: dict[str, str] = {}
    for one, other in pairwise(features):
        layer, before, after = module.get_submodule(other), features[one], features[other]
        same = isinstance(layer, ACTIVATIONS) and before.shape == after.shape
        # A copy, because the layer may work in place.
        if same and torch.equal(layer(before.clone()).nan_to_num(), after.nan_to_num()):
            found[one] = other
    return found
