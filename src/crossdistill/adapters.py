"""Conversions around a module: types of its inputs and outputs, and the logits and embedding in its result."""

import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from crossdistill.batch import Batch, Input
from crossdistill.errors import SettingError, ShapeError, SignalError, nearest
from crossdistill.runtime.code_key import Keyed

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh),
)
"""Layers that act on each value by itself."""

LOW = frozenset({torch.float16, torch.bfloat16})
"""Weight types of modules whose outputs are converted to float32."""


Adapter = TypeVar("Adapter")


def renamed(before: str, old: Adapter | None, name: str, new: Adapter | None) -> Adapter | None:
    """The value of a renamed argument; its old name is accepted with a warning.

    Raises:
        SettingError: both names were given.
    """
    if old is None:
        return new
    if new is not None:
        raise SettingError(f"{before} is the old name of {name}; give {name} alone")
    warnings.warn(
        f"{before}= is called {name}= now; the old name will be removed in version 0.2", DeprecationWarning, 3
    )
    return old


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating-point tensor in another type; any other value unchanged."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def detached_values(module: nn.Module) -> dict[int, Tensor]:
    """Replacements, by identity, for a module's tensors that cannot be deep-copied.

    Detached copies replace tensors that are part of a graph, new buffers the uninitialised ones of lazy layers.
    """
    replacements: dict[int, Tensor] = {}
    for layer in module.modules():
        for value in tensors_in(list(vars(layer).values())):
            if isinstance(value, UninitializedBuffer):
                make: Any = type(value)
                replacements[id(value)] = make(False, value.device, value.dtype)
            elif not value.is_leaf:
                replacements[id(value)] = value.detach().clone()
    return replacements


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside the context; each layer's mode is restored after it."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def closures_of_copy(module: nn.Module, functions: Iterable[Any], memo: dict[int, Any]) -> Iterator[None]:
    """While a module is copied with this memo, functions that close over its layers are copied for the new layers.

    A deep copy keeps a function unchanged, so that a hook of the copy would run and change the original.
    """
    layers = {id(layer) for layer in module.modules()}
    kept = (value for layer in module.modules() for value in vars(layer).values())
    cells: dict[int, tuple[types.CellType, types.CellType]] = {}
    for function in [*_functions_in(kept), *_functions_in(functions)]:
        closure = function.__closure__ or ()
        if id(function) not in memo and any(id(content_of(cell)) in layers for cell in closure):
            of_layers = [cell for cell in closure if id(content_of(cell)) in layers]
            cells |= {id(cell): (cell, types.CellType()) for cell in of_layers if id(cell) not in cells}
            copied_closure = tuple(cells[id(cell)][1] if id(cell) in cells else cell for cell in closure)
            code, names = function.__code__, function.__globals__
            copied = types.FunctionType(code, names, function.__name__, function.__defaults__, copied_closure)
            copied.__kwdefaults__ = function.__kwdefaults__
            copied.__dict__.update(vars(function))
            memo[id(function)] = copied
    yield
    for cell, copied_cell in cells.values():
        copied_cell.cell_contents = memo[id(cell.cell_contents)]


def content_of(cell: types.CellType) -> Any:
    """The value of a variable of a closure; None where it has none yet."""
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
    """A tensor of the same shape, with its first row in every position."""
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
    """The logits and the embedding in a tensor, a tuple or a mapping such as transformers' ModelOutput.

    Raises:
        SignalError: neither was found; the message suggests `output_adapter=`.
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


class FunctionModule(nn.Module):
    """A Python function as a frozen module without weights, such as a call of a model on a server.

    The function gets one array for each modality that the network reads (numpy, rows first), in that order, and returns
    an array of logits, or a mapping with `logits`, `embedding`, and further arrays by the names in `taps`.
    """

    def __init__(self, function: Callable[..., Any], key: str, taps: Sequence[str] = ()) -> None:
        super().__init__()
        if not isinstance(key, str) or not key:
            raise SettingError(f"key: wanted a text such as 'v1', which changes when the function does; found {key!r}")
        self.function = Keyed(function, key)
        for tap in taps:
            self.add_module(tap, nn.Identity())

    def forward(self, *values: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The function's arrays as tensors, without gradient."""
        device = next((one.device for one in (*values, *named.values())), torch.device("cpu"))
        arrays = {name: one.detach().cpu().numpy() for name, one in named.items()}
        result = self.function.call(*(one.detach().cpu().numpy() for one in values), **arrays)
        found = dict(result) if isinstance(result, Mapping) else {"logits": result}
        for name, value in found.items():
            tensor = torch.as_tensor(np.array(value), device=device)
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            found[name] = self.get_submodule(name)(tensor) if name in self._modules else tensor
        return found


def check_arguments(
    module: nn.Module | None,
    factory: Callable[[], Any] | None,
    reads: Sequence[str],
    needs: str,
    absent: Mapping[str, Tensor],
) -> None:
    """Check the arguments of a Network.

    Raises:
        SettingError: all faults together.
    """
    who = type(module).__name__ if module is not None else getattr(factory, "__qualname__", "a network")
    faults = []
    if (module is None) == (factory is None):
        faults.append("wanted either a module or a factory: Network(module, reads=...)")
    elif not (isinstance(module, nn.Module) if factory is None else callable(factory)):
        faults.append(f"wanted a torch module, found a {type(module or factory).__name__}")
    if not reads:
        faults.append("`reads` is empty: name modalities of the data, as in Network(module, reads=...)")
    if needs not in {"all", "any"}:
        faults.append(f"needs: wanted 'all' or 'any', found {needs!r}")
    if absent and needs != "any":
        faults.append("absent: it is used only with needs='any'")
    faults += [f"absent: it does not read {name!r}; {nearest(name, reads)}" for name in absent if name not in reads]
    if faults:
        raise SettingError(f"network {who!r}: {'; '.join(faults)}")


def usable(batch: Batch, reads: Sequence[str], needs: str, absent: Mapping[str, Tensor]) -> tuple[Tensor | None, Batch]:
    """The rows with the inputs that a network needs (None: all), and the batch of these rows.

    Absent inputs are never read: `absent`, or zeros, replace them.
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


def refused_input(
    who: str, reads: Sequence[str], values: Sequence[Tensor], module: nn.Module, error: str
) -> ShapeError:
    """The error for a module that refuses its input: the network, the shapes, and a hint about types."""
    shapes = ", ".join(str(tuple(value.shape)) for value in values)
    return ShapeError(
        f"network {who!r} refused its input: {', '.join(reads)} of shape {shapes} (batch first): "
        f"{' '.join(error.split())}{_type_hint(reads, values, module, error)}"
    )


def _type_hint(reads: Sequence[str], values: Sequence[Tensor], module: nn.Module, error: str) -> str:
    """A hint for inputs whose type differs from that of the weights; empty for other errors."""
    types = {p.dtype: p for p in module.parameters() if p.is_floating_point()}
    if not types or not re.search(r"type|not implemented for|Byte|Half|Long|Float|Double", error):
        return ""
    if len(types) > 1:
        return f"; its weights are {' and '.join(sorted(map(_type, types.values())))}: make them one type"
    (weight,) = types.values()
    names = reads if len(reads) == len(values) else [f"input {i}" for i in range(len(values))]
    return "".join(
        f"; {name!r} is {_type(value)} and the weights are {_type(weight)}: {_conversion(value, weight)}"
        for name, value in zip(names, values, strict=True)
        if value.dtype != weight.dtype
    )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _conversion(value: Tensor, weight: Tensor) -> str:
    """The conversion of an input to the type of the weights, to make before the data set is built."""
    if value.is_floating_point() or value.dtype == torch.bool:
        return f"convert it to {_type(weight)}"
    top = {torch.uint8: 255, torch.uint16: 65535}.get(value.dtype)
    scale = f"divide it by {top}" if top else "scale it to the range that the network expects, such as [0, 1]"
    return f"convert it to {_type(weight)} and {scale}"


@torch.no_grad()
def activated(
    module: nn.Module, features: Mapping[str, Tensor], declared: Mapping[str, str | None] = {}
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Pairs of taps, before and after an activation: it maps the values of the first to those of the second.

    `declared` adds pairs, where other operations stand between both; of taps with None, which no activation follows, it
    is the second result.
    """
    activations: dict[str, str] = {}
    for tap, next_tap in pairwise(features):
        layer, before, after = module.get_submodule(next_tap), features[tap], features[next_tap]
        same = isinstance(layer, ACTIVATIONS) and before.shape == after.shape
        # A copy, because the layer may work in place.
        if same and torch.equal(layer(before.clone()).nan_to_num(), after.nan_to_num()):
            activations[tap] = next_tap
    activations |= {tap: after for tap, after in declared.items() if after and {tap, after} <= set(features)}
    return activations, tuple(tap for tap, after in declared.items() if after is None and tap in features)
