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
        except Exception as error:  # tracing runs the user's own forward, which may raise anything at all
            raise SplitError(f"{self._who} cannot be traced, so it cannot be cut at its taps: {error}") from error

    def stem(self, taps: tuple[str, ...]) -> Graph:
        """From the module's arguments to one tuple for each tap: its value, then all else that its tail reads."""
        if taps not in self._stems:
            graph = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            live = [self._live(self._at(tap)) for tap in taps]
            kept: dict[fx.Node, fx.Node] = {}
            for node in self._graph.nodes:
                if node.op == "output":
                    continue
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if any(node in values for values in live):
                    # Where the next layer works in place, what crosses the cut has to be a copy.
                    kept[node] = graph.call_method("clone", (copies[node],)) if self._overwrites(node) else copies[node]
            graph.output(tuple(tuple(kept[node] for node in values) for values in live))
            graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"} or self._in_place(node))
            self._stems[taps] = fx.GraphModule(self._module, graph)
        return self._stems[taps]

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
        """Whether a direct user of this value works in place."""
        return any(self._in_place(user) and user.all_input_nodes[0] is node for user in node.users)

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
