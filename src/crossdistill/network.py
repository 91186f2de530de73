"""Any `nn.Module`, untouched: what it reads, its named taps, and how it is cut in two at one of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.code_key import CodeKey, code_key
from crossdistill.cut import CutGraph
from crossdistill.errors import CrossdistillError, SettingError, ShapeError, SignalError, SplitError, TapError, nearest
from crossdistill.fingerprint import structure
from crossdistill.outputs import Cut, Outputs, OutputSpec, Want

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
Call = Callable[[Batch], Arguments]
Give = Callable[[Any], Mapping[str, Tensor | None]]
Stem = Callable[[Batch], Cut]
Tail = Callable[[Cut], Outputs]

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh),
)
"""Layers that act on each value by itself."""


class Network(nn.Module):
    """A module, the modalities that it reads and the taps that it shows.

    `reads` are modalities of a batch, in the order of the module's arguments. `taps` are names of submodules whose
    outputs can be read or rewritten (module outputs, so before an activation that follows as another layer).
    `call` replaces the default way from a batch to the module's arguments; `give` replaces the default way from
    its result to `{"logits": ..., "embedding": ...}` (a tensor is logits; a tuple is logits, embedding; a mapping
    such as transformers' ModelOutput is read by the names `logits`, `embedding`, `pooler_output`, or else the mean over
    the steps of `last_hidden_state`).

    Raises:
        TapError: a tap names no submodule; says the nearest.
    """

    def __init__(
        self,
        module: nn.Module,
        reads: Sequence[str],
        taps: Sequence[str] = (),
        call: Call | None = None,
        give: Give | None = None,
        spec: OutputSpec | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.reads = (reads,) if isinstance(reads, str) else tuple(reads)
        self.taps = tuple(taps)
        self.spec = spec
        self._call = call
        self._give = give
        self._graphs: dict[int, CutGraph] = {}
        self._compiled: tuple[Callable[..., Any], ...] = ()
        self._overwritten: set[str] = set()
        self._verified: set[str] = set()
        self._changing: frozenset[str] = frozenset()
        known = dict(module.named_modules())
        for tap in self.taps:
            if tap not in known or not tap:
                raise TapError(f"{type(module).__name__} has no layer {tap!r}; {nearest(tap, filter(None, known))}")

    @property
    def name(self) -> str:
        """The module's class, for messages."""
        return type(self.module).__name__

    def wiring(self) -> list[Any] | None:
        """What its outputs depend on besides weights, as JSON; None where something of that cannot be keyed."""
        return None if self.unkeyed() else [structure(self.module), list(self.reads), self.code_text()]

    def code_text(self) -> str:
        """A hash of its code and of its modules' attributes, as far as they can be keyed: see `unkeyed`."""
        return self._code().text(self._changing)

    def unkeyed(self) -> list[str]:
        """What its outputs may depend on and no key says, each with the reason."""
        changing = [f"{path} changes as the network runs" for path in sorted(self._changing)]
        return [*self._code().faults.values(), *changing]

    def has_own_code(self) -> bool:
        """Whether it runs code of no installed distribution."""
        return self._code().own

    def _code(self) -> CodeKey:
        return code_key(module=self.module, call=self._call, give=self._give)

    def watch(self, batches: Iterable[Batch]) -> None:
        """Find attributes and globals that a pass changes: they have no value that a key could hold.

        The first pass may fill caches; what later ones change is remembered.
        """
        was = self.training
        self.eval()
        with torch.no_grad():
            found = []
            for batch in batches:
                self(batch)
                found.append(self._code())
        self.train(was)
        self._changing |= {path for one, next_ in pairwise(found) for path in one.changed(next_)}

    def forward(self, batch: Batch, wants: Iterable[Want] = (Want.LOGITS,)) -> Outputs:
        """Outputs for all rows of `batch`: at least what `wants` names.

        Raises:
            SignalError: the batch lacks a modality, or the network lacks a tap.
            ShapeError: the module refused its input; says who, and the shapes it was given.
        """
        wants = frozenset(wants)
        cuts = self.cuts(batch, [want.tap for want in sorted(wants) if want.kind == "cut"])
        if all(want.kind == "cut" for want in wants):
            return Outputs(self.name, cuts=cuts)
        features = sorted(want.tap for want in wants if want.kind == "feature")
        result, seen = self._run_reading(batch, features)
        return self.outputs(result, seen, cuts)

    def cuts(self, batch: Batch, taps: Sequence[str]) -> dict[str, Cut]:
        """The cuts at several taps, in one pass over what comes before them.

        Raises:
            SplitError: the network cannot be cut exactly at one of them.
        """
        if not taps:
            return {}
        args, named = self.arguments(batch)
        found: dict[str, Cut] = {}
        for level in sorted({self._level(tap) for tap in taps}):
            graph, group = self._graph(level), [tap for tap in taps if self._level(tap) == level]
            for tap in set(group) - self._verified:
                self._verify(graph, tap, args, named)
            for tap, (value, *context) in zip(group, graph.stem(tuple(group))(*args, **named), strict=True):
                found[tap] = Cut(value, tuple(context))
        return found

    def _verify(self, graph: CutGraph, tap: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Hold the two parts against the whole once, on real rows, bit for bit.

        The second part runs twice on the same cut, which it must not spoil.
        """
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad():
                whole = self.outputs(self.module(*args, **named))
                (live,) = graph.stem((tap,))(*args, **named)
                parts = [self.outputs(graph.tail(tap)(*live)) for _ in range(2)]
        finally:
            for module, mode in modes.items():
                module.training = mode
        for name in ("logits", "embedding"):
            one = getattr(whole, name)
            if one is not None and not all(torch.equal(one.nan_to_num(), getattr(p, name).nan_to_num()) for p in parts):
                raise SplitError(
                    f"{self.name} cut at {tap!r} gives other {name} than the whole; it cannot be cut there"
                )
        self._verified.add(tap)

    def outputs(
        self, result: Any, features: Mapping[str, Tensor] | None = None, cuts: Mapping[str, Cut] | None = None
    ) -> Outputs:
        """A module's own result, as Outputs."""
        given = self._give(result) if self._give is not None else default_give(result, self.name)
        return Outputs(self.name, given.get("logits"), given.get("embedding"), dict(features or {}), dict(cuts or {}))

    def arguments(self, batch: Batch) -> Arguments:
        """How this batch reaches the module: positional and keyword arguments."""
        if self._call is not None:
            return self._call(batch)
        args: list[Any] = []
        named: dict[str, Any] = {}
        for modality in self.reads:
            value = batch.read(modality, self.name)
            if isinstance(value, Tensor):
                args.append(value)
            else:
                named |= value
        return tuple(args), named

    def probe(self, batch: Batch) -> OutputSpec:
        """Sizes of all outputs, measured by a dry run in eval mode; kept in `spec`."""
        was = self.training
        self.eval()
        with torch.no_grad():
            outputs = self(batch, {Want.LOGITS, *map(Want.feature, self.taps)})
        self.train(was)

        def shape(value: Tensor | None) -> tuple[int, ...] | None:
            return None if value is None else tuple(value.shape[1:])

        features = {tap: tuple(value.shape[1:]) for tap, value in outputs.features.items()}
        activated = self._activated(outputs.features)
        self.spec = OutputSpec(shape(outputs.logits), shape(outputs.embedding), features, activated)
        return self.spec

    @torch.no_grad()
    def _activated(self, features: Mapping[str, Tensor]) -> dict[str, str]:
        """Taps whose activation is tapped too: the same values come out when it is applied to them."""
        found: dict[str, str] = {}
        for one, other in pairwise(features):
            layer, before, after = self.module.get_submodule(other), features[one], features[other]
            same = isinstance(layer, ACTIVATIONS) and before.shape == after.shape
            # A copy, because the layer may work in place.
            if same and torch.equal(layer(before.clone()).nan_to_num(), after.nan_to_num()):
                found[one] = other
        return found

    def showing(self, taps: Sequence[str], batch: Batch) -> "Network":
        """The same module with further taps; this network keeps the ones that it has.

        Raises:
            TapError: a tap names no submodule; says the nearest.
        """
        more = [tap for tap in taps if tap not in self.taps]
        if not more:
            return self
        training = self.training
        shown = Network(self.module, self.reads, (*self.taps, *more), self._call, self._give)
        shown.training, shown._changing = training, self._changing
        shown.probe(batch)
        return shown

    def edited(self, batch: Batch, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Outputs:
        """A whole pass in which the values at some taps are replaced by a function of them."""
        handles = []
        try:
            for tap, edit in edits.items():
                self._layer(tap)
                layer = self.module.get_submodule(tap)
                handles.append(layer.register_forward_hook(lambda _m, _a, result, edit=edit: edit(result)))
            return self.outputs(self._run(batch))
        finally:
            for handle in handles:
                handle.remove()

    def split(self, tap: str) -> tuple[Stem, Tail]:
        """The network as two parts: up to and including `tap`, and from there to the end.

        The stem gives everything that is live across the cut (the value at the tap, skips, pooling indices); the
        tail needs nothing else. Parameters are shared with the network.

        Raises:
            SplitError: the module cannot be traced, the tap runs more than once or not at all.
        """
        second = self._graph(self._level(tap)).tail(tap)
        return (
            lambda batch: self.cuts(batch, [tap])[tap],
            lambda cut: self.outputs(second(cut.value, *cut.context)),
        )

    def _level(self, tap: str) -> int:
        """In how many other taps this one lies: a tapped layer is traced whole, so every level has its own graph."""
        self._layer(tap)
        return sum(tap.startswith(f"{other}.") for other in self.taps)

    def _graph(self, level: int) -> CutGraph:
        if level not in self._graphs:
            self._graphs[level] = CutGraph(self.module, [tap for tap in self.taps if self._level(tap) == level])
        return self._graphs[level]

    def _layer(self, tap: str) -> None:
        if tap not in self.taps:
            raise TapError(f"{self.name} has no tap {tap!r}; {nearest(tap, self.taps)}")

    def use_compiled(self, wanted: bool) -> None:
        """Run whole passes through torch.compile from now on, or no longer; taps and cuts are read without it."""
        # In a tuple: as a submodule it would hold every weight a second time.
        self._compiled = (torch.compile(self.module),) if wanted else ()

    def _run(self, batch: Batch, *, compiled: bool = False) -> Any:
        args, named = self.arguments(batch)
        run = self._compiled[0] if compiled and self._compiled else self.module
        try:
            return run(*args, **named)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError | CrossdistillError):
                raise
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise SettingError(
                    f"network {self.name!r} cannot be compiled: {' '.join(str(error).split())[:400]}; set compile to "
                    "false (on a CPU, compiling takes a C++ compiler)"
                ) from error
            given = [a for a in (*args, *named.values()) if isinstance(a, Tensor)]
            shapes = ", ".join(str(tuple(a.shape)) for a in given)
            raise ShapeError(
                f"network {self.name!r} refused its input: {', '.join(self.reads)} of shape "
                f"{shapes} (batch first): {' '.join(str(error).split())}{self._type_hint(given, str(error))}"
            ) from error

    def _type_hint(self, given: Sequence[Tensor], error: str) -> str:
        """What to do with inputs whose type is not the weights', where that is what a module refused."""
        weight = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if weight is None or not re.search(r"type|not implemented for|Byte|Half|Long|Float", error):
            return ""
        names = self.reads if len(self.reads) == len(given) else [f"input {i}" for i in range(len(given))]
        return "".join(
            f"; {name!r} is {_type(value)} and the weights are {_type(weight)}: {_cast(value, weight)}"
            for name, value in zip(names, given, strict=True)
            if value.dtype != weight.dtype
        )

    def _run_reading(self, batch: Batch, taps: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
        """One pass, and what came out of the tapped layers."""
        seen: dict[str, tuple[Tensor, int]] = {}

        def keep(tap: str, value: Any) -> None:
            if not isinstance(value, Tensor):
                raise TapError(f"{self.name}: the layer {tap!r} gives a {type(value).__name__}; a tap gives one tensor")
            value = value.clone() if tap in self._overwritten else value
            seen[tap] = (value, value._version)

        handles = []
        try:
            for tap in taps:
                self._layer(tap)
                layer = self.module.get_submodule(tap)
                handles.append(layer.register_forward_hook(lambda _m, _a, result, tap=tap: keep(tap, result)))
            result = self._run(batch, compiled=not taps)
        finally:
            for handle in handles:
                handle.remove()
        missing = [tap for tap in taps if tap not in seen]
        if missing:
            raise TapError(
                f"{self.name} never ran the layers {missing} for this input; tap layers that every pass runs"
            )
        overwritten = {tap for tap, (value, version) in seen.items() if value._version != version}
        if overwritten:
            # The next layer works in place and spoiled what was read: from now on a copy is kept.
            self._overwritten |= overwritten
            return self._run_reading(batch, taps)
        return result, {tap: value for tap, (value, _) in seen.items()}


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cast(value: Tensor, weight: Tensor) -> str:
    """How to make one input what the weights are, before the data set is made of it."""
    if value.is_floating_point() or value.dtype == torch.bool:
        return f"convert it to {_type(weight)}"
    top = {torch.uint8: 255, torch.uint16: 65535}.get(value.dtype)
    scale = f"divide it by {top}" if top else "scale it to the range that the network expects, such as [0, 1]"
    return f"convert it to {_type(weight)} and {scale}"


def default_give(result: Any, who: str) -> Mapping[str, Tensor | None]:
    """Logits and embedding out of a tensor, a tuple or a mapping such as transformers' ModelOutput.

    Raises:
        SignalError: nothing of that kind was found; says to pass `give=`.
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
        "pass give=, a function from that result to {'logits': tensor, 'embedding': tensor}"
    )
