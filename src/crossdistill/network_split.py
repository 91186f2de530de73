"""The split of a module at a named layer: by its traced graph, or by replaying the layers before the cut.

The traced graph keeps everything that is live across the cut. Where a module cannot be traced, its forward runs again
from the start, but every layer that finished before the cut returns its recorded output without running; only the code
between the layers runs twice. Layers before the cut do not depend on the output at the cut, so that the result is exact
for any forward that is a function of its inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from crossdistill.adapters import tensors_in
from crossdistill.errors import SplitError

Graph = Callable[..., Any]


class CutGraph:
    """The traced graph of a module, from which stems and tails are built; they share the module's parameters.

    Raises:
        SplitError: the module cannot be traced.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str]) -> None:
        self._module = module
        self._who = type(module).__name__
        self._stems: dict[tuple[str, ...], Graph] = {}
        self._tails: dict[str, Graph] = {}
        try:
            self._graph = _LayerTracer(taps).trace(module)
            for node in self._graph.nodes:
                # The type would be written into the code of stems and tails; torch 2.6 cannot parse unions there.
                node.type = None
        except Exception as error:  # tracing runs the user's own forward, which may raise any error
            raise SplitError(f"{self._who} cannot be traced, so its graph cannot be cut: {error}") from error

    def stem(self, taps: tuple[str, ...]) -> Graph:
        """The part from the module's arguments to one tuple per tap: its value, then the other inputs of its tail."""
        if taps not in self._stems:
            graph = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            cuts = [(self._at(tap), self._live(self._at(tap))) for tap in taps]
            kept: list[dict[fx.Node, fx.Node]] = [{} for _ in cuts]
            for node in self._before(cuts):
                copies[node] = graph.node_copy(node, copies.__getitem__)
                for (at, live), values in zip(cuts, kept, strict=True):
                    # A cut holds the values right after its tap has run, without in-place changes made later.
                    for value in [v for v in live if v in copies and v not in values and at in copies]:
                        copy = copies[value]
                        values[value] = graph.call_method("clone", (copy,)) if self._overwrites(value) else copy
            parts = [tuple(map(values.__getitem__, live)) for (_, live), values in zip(cuts, kept, strict=True)]
            graph.output(tuple(parts))
            self._stems[taps] = fx.GraphModule(self._module, graph)
        return self._stems[taps]

    def _before(self, cuts: Sequence[tuple[fx.Node, Sequence[fx.Node]]]) -> list[fx.Node]:
        """The nodes that all cuts need: those that compute their values, and those that change these in place."""
        nodes = list(self._graph.nodes)
        values = {value for _, live in cuts for value in live}
        last = max(index for index, node in enumerate(nodes) if node in values)
        after_all = set.intersection(*(_descendants(at) for at, _ in cuts))
        spoiling = {node for node in nodes[: last + 1] if self._in_place(node) and node not in after_all}
        needed, todo = set[fx.Node](), [*values, *spoiling]
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo += node.all_input_nodes
        return [node for node in nodes[: last + 1] if node in needed or node.op == "placeholder"]

    def tail(self, tap: str) -> Graph:
        """The part from the live values at a tap, in the stem's order, to the module's own result."""
        if tap not in self._tails:
            at = self._at(tap)
            after = _descendants(at)
            graph = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            for index, node in enumerate(self._live(at)):
                value = graph.placeholder(f"live_{index}")
                # The cut may be a row of a bank or the input of another mask: it must not change.
                copies[node] = graph.call_method("clone", (value,)) if self._overwrites(node) else value
            for node in self._graph.nodes:
                if node not in copies and (node in after or node.op in {"output", "get_attr"}):
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            self._tails[tap] = fx.GraphModule(self._module, graph)
        return self._tails[tap]

    def _at(self, tap: str) -> fx.Node:
        nodes = [node for node in self._graph.nodes if node.op == "call_module" and node.target == tap]
        if len(nodes) != 1:
            raise SplitError(
                f"{self._who} runs the layer {tap!r} {len(nodes)} times in one pass; it can be cut where it runs once"
            )
        at: fx.Node = nodes[0]
        return at

    def _live(self, at: fx.Node) -> list[fx.Node]:
        """The value at the tap, then every other computed value that the tail reads."""
        after = _descendants(at)
        live = [at]
        for node in self._graph.nodes:
            if node in after or node.op == "output":
                # Weights and constants are read again by the tail itself; only computed values cross the cut.
                live += [s for s in node.all_input_nodes if s not in after and s not in live and s.op != "get_attr"]
        if not any(node.op == "output" and set(node.all_input_nodes) & (after | {at}) for node in self._graph.nodes):
            raise SplitError(f"the result of {self._who} does not depend on the layer {at.target!r}")
        return live

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether an operation may change this value, or another view of it, in place."""
        views, todo = {node}, [node]
        while todo:
            value = todo.pop()
            for user in value.users:
                if self._in_place(user) and user.all_input_nodes[0] is value:
                    return True
                # Only a layer with weights is certain to return a new tensor.
                if user not in views and not self._has_weights(user):
                    views.add(user)
                    todo.append(user)
        return False

    def _has_weights(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        return any(True for _ in self._module.get_submodule(str(node.target)).parameters())

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            layer = self._module.get_submodule(str(node.target))
            return bool(layer.inplace) if hasattr(layer, "inplace") else False
        if node.op == "call_method":
            return str(node.target).endswith("_") and not str(node.target).startswith("_")
        name = node.target.__name__ if callable(node.target) and hasattr(node.target, "__name__") else ""
        # `x += y` is iadd; in-place functions such as `torch.relu_` end in one underscore.
        return (
            bool(node.kwargs.get("inplace", False))
            or name.endswith("_")
            or name in {"iadd", "imul", "isub", "itruediv"}
        )


class _LayerTracer(fx.Tracer):
    """Traces through a module, keeping every torch layer and every tapped layer whole."""

    def __init__(self, taps: Sequence[str]) -> None:
        super().__init__()
        self._taps = set(taps)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._taps or super().is_leaf_module(m, module_qualified_name)


def _descendants(node: fx.Node) -> set[fx.Node]:
    descendants: set[fx.Node] = set()
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user not in descendants and user.op != "output":
            descendants.add(user)
            todo.extend(user.users)
    return descendants


class _Over(BaseException):
    """Ends a pass once its last cut is reached; an `except Exception` in a user's forward does not catch it."""


class _Recompute:
    """Marker for an output that cannot be recorded: the layer runs again."""


@dataclass(slots=True)
class Recording:
    """A recorded pass up to a layer: the module's arguments, and for each layer the outputs of its calls."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    calls: dict[str, list[Any]] = field(default_factory=dict)


class ReplayedCut:
    """Stems and tails of a module by replaying layers; the same interface as `CutGraph`."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        """`reason` is the error of the attempt to trace the module."""
        self.reason = reason
        self._module = module
        self._counted: set[str] = set()

    def stem(self, taps: tuple[str, ...]) -> Graph:
        """The part from the module's arguments to the value at each tap, with a recording of the layers before it."""

        def run(*args: Any, **named: Any) -> tuple[tuple[Any, Recording], ...]:
            recorders = [_Recorder(self._module, tap, Recording(args, named)) for tap in taps]
            # The first pass runs to the end, to count how often each layer runs.
            ends = self._counted.issuperset(taps)
            with ExitStack() as stack:
                for recorder in recorders:
                    stack.enter_context(recorder.listening(lambda: ends and all(each.times for each in recorders)))
                with suppress(_Over):
                    self._module(*args, **named)
            for recorder in recorders:
                if recorder.times != 1:
                    raise _runs(self._module, recorder.tap, recorder.times)
            self._counted |= set(taps)
            return tuple((recorder.value, recorder.recording) for recorder in recorders)

        return run

    def tail(self, tap: str) -> Graph:
        """The part from the value at a tap and the recording of the layers before it to the module's own result."""

        def run(value: Tensor, recording: Recording) -> Any:
            with ExitStack() as stack:
                reached = stack.enter_context(_replaying(self._module, tap, value, recording))
                result = self._module(*recording.args, **recording.named)
            if len(reached) != 1:
                raise _runs(self._module, tap, len(reached))
            return result

        return run


class _Recorder:
    """Records the outputs of layers until a tap is reached."""

    def __init__(self, module: nn.Module, tap: str, recording: Recording) -> None:
        self.tap, self.recording = tap, recording
        self.value: Any = None
        self.times = 0
        self._module = module
        self._depth = 0

    @contextmanager
    def listening(self, over: Callable[[], bool]) -> Iterator[None]:
        """Record while a pass runs; the pass ends early where `over()` is True."""
        with ExitStack() as stack:
            for name, layer in _before(self._module, self.tap).items():
                stack.enter_context(_forward(layer, self._recorded(name, layer.forward)))
            layer = self._module.get_submodule(self.tap)
            stack.enter_context(_forward(layer, self._tapped(layer.forward, over)))
            yield

    def _recorded(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        calls = self.recording.calls.setdefault(name, [])

        def run(*args: Any, **named: Any) -> Any:
            inputs = [(value, value._version) for value in tensors_in([args, named])]
            self._depth += 1
            try:
                result = forward(*args, **named)
            finally:
                self._depth -= 1
            if not self.times and not self._depth:
                calls.append(_Recompute if _touched(inputs, result) else _copied(result))
            return result

        return run

    def _tapped(self, forward: Callable[..., Any], over: Callable[[], bool]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            result = forward(*args, **named)
            self.times += 1
            if not isinstance(result, Tensor):
                raise SplitError(f"the layer {self.tap!r} returns a {type(result).__name__}; wanted a tensor")
            if self.times == 1:
                self.value = result.clone()
            if over():
                raise _Over
            return result

        return run


@contextmanager
def _replaying(module: nn.Module, tap: str, value: Tensor, recording: Recording) -> Iterator[list[bool]]:
    """While a pass runs, layers before the tap return their recorded outputs, and the tap returns `value`."""
    reached: list[bool] = []
    depth = 0

    def replayed(calls: Sequence[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
        left = iter(calls)

        def run(*args: Any, **named: Any) -> Any:
            nonlocal depth
            output = _Recompute if reached or depth else next(left, _Recompute)
            if output is not _Recompute:
                return _copied(output)
            depth += 1
            try:
                return forward(*args, **named)
            finally:
                depth -= 1

        return run

    def tapped(*args: Any, **named: Any) -> Tensor:
        reached.append(True)
        return value.clone()

    with ExitStack() as stack:
        for name, layer in _before(module, tap).items():
            stack.enter_context(_forward(layer, replayed(recording.calls.get(name, ()), layer.forward)))
        stack.enter_context(_forward(module.get_submodule(tap), tapped))
        yield reached


def _before(module: nn.Module, tap: str) -> dict[str, nn.Module]:
    """The largest layers outside the path to a tap: each finishes before the tap runs, or starts after it."""
    parts = tap.split(".")
    way = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    on_way = {id(module.get_submodule(name)) for name in way}
    inside = {id(layer) for layer in module.get_submodule(tap).modules()}
    before: dict[str, nn.Module] = {}
    for name in way[:-1]:
        for child, layer in module.get_submodule(name).named_children():
            holds = {id(part) for part in layer.modules()}
            # A layer that shares parts with the path to the tap cannot be replayed as a unit.
            if not holds & (on_way | inside) and id(layer) not in map(id, before.values()):
                before[f"{name}.{child}" if name else child] = layer
    return before


@contextmanager
def _forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a layer temporarily; the layer's hooks still run around it."""
    instance_forward = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if instance_forward is None:
            del layer.forward
        else:
            layer.forward = instance_forward


def _touched(inputs: Sequence[tuple[Tensor, int]], result: Any) -> bool:
    """Whether a layer changed its input in place or returned a view of it, so that it has to run again."""
    storages = {value.untyped_storage().data_ptr() for value, _ in inputs}
    views = any(value.untyped_storage().data_ptr() in storages for value in tensors_in([result]))
    return views or any(value._version != version for value, version in inputs)


def _copied(value: Any) -> Any:
    """A copy with tensors of its own; `_Recompute` for anything but a plain structure of tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        parts = [_copied(part) for part in value]
        if any(part is _Recompute for part in parts):
            return _Recompute
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        named = {key: _copied(part) for key, part in value.items()}
        if any(part is _Recompute for part in named.values()):
            return _Recompute
        if type(value) is dict:
            return named
        # transformers' ModelOutput is constructed from its fields.
        return type(value)(**named) if hasattr(value, "to_tuple") else _Recompute
    return _Recompute


def _runs(module: nn.Module, tap: str, times: int) -> SplitError:
    return SplitError(
        f"{type(module).__name__} runs the layer {tap!r} {times} times in one pass; it can be cut where it runs once"
    )
