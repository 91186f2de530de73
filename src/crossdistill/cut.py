"""How a module is cut in two at a named layer: by its traced graph, so that nothing live across the cut is lost."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from crossdistill.errors import SplitError

Graph = Callable[..., Any]


class CutGraph:
    """The traced graph of a module, out of which stems and tails are made; parameters stay the module's own.

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
                # Written into the code of stems and tails, where torch 2.6 does not understand unions of types.
                node.type = None
        except Exception as error:  # tracing runs the user's own forward, which may raise anything at all
            raise SplitError(f"{self._who} cannot be traced, so its graph cannot be cut: {error}") from error

    def stem(self, taps: tuple[str, ...]) -> Graph:
        """From the module's arguments to one tuple for each tap: its value, then all else that its tail reads."""
        if taps not in self._stems:
            graph = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            cuts = [(self._at(tap), self._live(self._at(tap))) for tap in taps]
            kept: list[dict[fx.Node, fx.Node]] = [{} for _ in cuts]
            for node in self._before(cuts):
                copies[node] = graph.node_copy(node, copies.__getitem__)
                for (at, live), own in zip(cuts, kept, strict=True):
                    # A cut is what is there when its tap has run: nothing before that, nothing done in place later.
                    for value in [v for v in live if v in copies and v not in own and at in copies]:
                        copy = copies[value]
                        own[value] = graph.call_method("clone", (copy,)) if self._overwrites(value) else copy
            graph.output(tuple(tuple(own[value] for value in live) for (_, live), own in zip(cuts, kept, strict=True)))
            self._stems[taps] = fx.GraphModule(self._module, graph)
        return self._stems[taps]

    def _before(self, cuts: Sequence[tuple[fx.Node, Sequence[fx.Node]]]) -> list[fx.Node]:
        """What has to run so that all cuts are there: what they are computed from, and what works in place on that."""
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
        """From what is live at a tap, in the stem's order, to the module's own result."""
        if tap not in self._tails:
            at = self._at(tap)
            after = _descendants(at)
            graph = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            for index, node in enumerate(self._live(at)):
                given = graph.placeholder(f"live_{index}")
                # The cut may be a row of a bank or another mask's input: it must not be spoiled.
                copies[node] = graph.call_method("clone", (given,)) if self._overwrites(node) else given
            for node in self._graph.nodes:
                if node not in copies and (node in after or node.op in {"output", "get_attr"}):
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            self._tails[tap] = fx.GraphModule(self._module, graph)
        return self._tails[tap]

    def _at(self, tap: str) -> fx.Node:
        found = [node for node in self._graph.nodes if node.op == "call_module" and node.target == tap]
        if len(found) != 1:
            raise SplitError(
                f"{self._who} runs the layer {tap!r} {len(found)} times in one pass; it can be cut where it runs once"
            )
        at: fx.Node = found[0]
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
        """Whether something may work in place on this value, or on another view of it."""
        views, todo = {node}, [node]
        while todo:
            value = todo.pop()
            for user in value.users:
                if self._in_place(user) and user.all_input_nodes[0] is value:
                    return True
                # Only a layer with weights is sure to give a tensor of its own.
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
        # `x += y` is iadd; `torch.relu_` and its like end in one underscore.
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
    found: set[fx.Node] = set()
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user not in found and user.op != "output":
            found.add(user)
            todo.extend(user.users)
    return found
