"""A wrapper of any `nn.Module`, which stays unchanged: its inputs, its named taps, and its split at a tap."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossdistill.adapters import (
    LOW,
    FunctionModule,
    activated,
    cast,
    check_arguments,
    closures_of_copy,
    default_give,
    detached_values,
    evaluated,
    first_rows,
    refused_input,
    renamed,
    usable,
)
from crossdistill.batch import Batch
from crossdistill.data.dataset import Licence
from crossdistill.data.rendering import Rendering
from crossdistill.errors import CrossdistillError, SettingError, SplitError, TapError, nearest
from crossdistill.nets.tap_reader import ENDED, TapReader
from crossdistill.network_split import CutGraph, ReplayedCut
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal, same_values
from crossdistill.runtime.code_key import CodeKey, code_key
from crossdistill.runtime.hashing import structure

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
InputAdapter = Callable[[Batch], Arguments]
OutputAdapter = Callable[[Any], Mapping[str, Tensor | None]]
Stem = Callable[[Batch], Cut]
Tail = Callable[[Cut], Outputs]


class Network(nn.Module):
    """A module with the modalities of its inputs and its named taps.

    `reads` are modalities of a batch, in the order of the module's arguments. `taps` are names of submodules whose
    outputs can be read or rewritten (module outputs, so before an activation that follows as another layer).
    `input_adapter` replaces the default conversion of a batch to the module's arguments, `output_adapter` that of its
    result to `{"logits": ..., "embedding": ...}` (a tensor is logits; a tuple is logits, embedding; a mapping such as
    transformers' ModelOutput is read by the names `logits`, `embedding`, `pooler_output`, else the mean over steps of
    `last_hidden_state`).

    `factory`, a function without arguments that returns a module, can replace `module`, which keeps its own weights for
    every seed: each run then draws the weights from the recipe's seed and the member's name.

    With `needs="any"` a row is used where at least one of `reads` is present, and `absent` replaces the missing inputs
    (by modality a tensor of one row's shape; by default zeros). By default ("all") such a row is left out.

    A module in lower precision than float32 receives its inputs in that precision; its outputs become float32.
    `renderings` prepare inputs such as "image@clip", a name of `reads`, from the modality before the "@".

    Raises:
        SettingError: neither or both of a module and a factory, no `reads`, or `absent` for a modality not in `reads`.
        TapError: a tap names no submodule; the message names the nearest.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        reads: Sequence[str] = (),
        taps: Sequence[str] = (),
        input_adapter: InputAdapter | None = None,
        output_adapter: OutputAdapter | None = None,
        spec: OutputSpec | None = None,
        *,
        factory: Callable[[], nn.Module] | None = None,
        needs: Literal["all", "any"] = "all",
        absent: Mapping[str, Tensor] | None = None,
        renderings: Mapping[str, Rendering] | None = None,
        licence: Licence | None = None,
        call: InputAdapter | None = None,
        give: OutputAdapter | None = None,
    ) -> None:
        super().__init__()
        self.reads = (reads,) if isinstance(reads, str) else tuple(reads)
        check_arguments(module, factory, self.reads, needs, absent or {})
        self.factory = factory
        self.needs = needs
        self.absent = dict(absent or {})
        self.renderings, self.licence = dict(renderings or {}), licence
        self.taps, self.spec = tuple(taps), spec
        self.activations: Mapping[str, str | None] = {}
        self._input_adapter = renamed("call", call, "input_adapter", input_adapter)
        self._output_adapter = renamed("give", give, "output_adapter", output_adapter)
        self._graphs: dict[int, CutGraph | ReplayedCut] = {}
        self._compiled: tuple[Callable[..., Any], ...] = ()
        self._reader = TapReader()
        self._verified: set[str] = set()
        self.changing, self.frozen = frozenset[str](), frozenset[str]()
        self._types: frozenset[torch.dtype] | None = None
        if module is not None:
            self.module = module
            known = dict(module.named_modules())
            for tap in self.taps:
                if tap not in known or not tap:
                    raise TapError(f"{type(module).__name__} has no layer {tap!r}; {nearest(tap, filter(None, known))}")

    @classmethod
    def from_function(cls, function: Callable[..., Any], key: str, reads: Sequence[str], **options: Any) -> "Network":
        """A frozen network that calls a function; see `FunctionModule`. Equal keys promise equal outputs."""
        module = FunctionModule(function, key, options.get("taps", ()))
        return cls(module, reads, **options)

    @property
    def is_made(self) -> bool:
        """Whether the module exists, and not only a factory for it."""
        return "module" in self._modules

    @property
    def name(self) -> str:
        """The name of the module's class or of the factory, for messages."""
        made = type(self.module) if self.is_made else self.factory
        return str(getattr(made, "__qualname__", made)).rpartition(".")[2]

    def __getattr__(self, name: str) -> Any:
        """Raise an explicit error where the module of a factory is used before a run has made it."""
        if name == "module" and not self.is_made:
            raise AttributeError(f"network {self.name!r} is a factory: a run makes its module, from the recipe's seed")
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Network":
        """A copy with its own weights. Tensors that the module keeps from a pass are copied without their graph."""
        memo |= {key: value for key, value in detached_values(self).items() if key not in memo}
        copied = memo[id(self)] = type(self).__new__(type(self))
        state = {**self.__dict__, "_graphs": {}, "_compiled": ()}
        with closures_of_copy(self, (self._input_adapter, self._output_adapter), memo):
            copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in state.items()})
        return copied

    def holding(
        self, module: nn.Module | None, factory: Callable[[], Any] | None, taps: Sequence[str] | None = None
    ) -> "Network":
        """The same network with another module, with a factory in its place, or with other taps."""
        rest = (self.reads, self.taps if taps is None else taps, self._input_adapter, self._output_adapter)
        make = factory if module is None else None
        network = Network(module, *rest, factory=make, needs=self.needs, absent=self.absent)
        network.renderings, network.licence, network.factory = self.renderings, self.licence, factory
        network.activations = self.activations
        return network

    def wiring(self) -> list[Any] | None:
        """Everything besides weights that determines the outputs, as JSON; None where a part has no key."""
        own = [self.renderings[name].key for name in sorted(self.renderings)]
        return None if self.unkeyed() else [structure(self.module), list(self.reads), self.code_text(), *own]

    def code_text(self) -> str:
        """A hash of the code and of the modules' attributes, as far as they have keys: see `unkeyed`."""
        return self.code().text(self.changing)

    def unkeyed(self) -> list[str]:
        """Parts that may change the outputs and have no key, each with the reason."""
        changing = [f"{path} changes as the network runs" for path in sorted(self.changing)]
        return [*self.code().faults.values(), *changing]

    def has_own_code(self) -> bool:
        """Whether it runs code that belongs to no installed distribution."""
        return self.code().own

    def code(self) -> CodeKey:
        """The key of its module and its adapters, part by part."""
        filled = {} if self.needs == "all" else {"needs": self.needs, "absent": self.absent}
        return code_key(module=self.module, call=self._input_adapter, give=self._output_adapter, **filled)

    def forward(self, batch: Batch, signals: Iterable[Signal] = (Signal.LOGITS,), *, only: bool = False) -> Outputs:
        """Outputs for all rows of `batch`: at least those that `signals` name.

        With `only`, a network whose module says that its layers run `in_order` gives nothing else: where `signals` are
        layers, its pass ends after the last of them, and there are neither logits nor an embedding.

        Raises:
            SignalError: the batch lacks a modality, or the network lacks a tap.
            ShapeError: the module refused its input; the message names the network and the shapes.
        """
        signals = frozenset(signals)
        cuts = self.cuts(batch, [signal.tap for signal in sorted(signals) if signal.kind == "cut"])
        if all(signal.kind == "cut" for signal in signals):
            return Outputs(self.name, cuts=cuts)
        taps = sorted(signal.tap for signal in signals if signal.kind == "feature")
        for tap in taps:
            self._layer(tap)
        whole = not only or bool(signals & {Signal.LOGITS, Signal.EMBEDDING})
        ends = not whole and bool(getattr(self.module, "in_order", False))
        run = partial(self._run, batch, compiled=not taps)
        result, seen = self._reader.read(self.name, self.module, taps, run, ends=ends)
        if result is ENDED:
            return Outputs(self.name, features={tap: self._whole(value) for tap, value in seen.items()}, cuts=cuts)
        return self.outputs(result, seen, cuts)

    def cuts(self, batch: Batch, taps: Sequence[str]) -> dict[str, Cut]:
        """The cuts at several taps, in one pass over the layers before them.

        Raises:
            SplitError: the network cannot be cut exactly at one of them.
        """
        if not taps:
            return {}
        args, named = self.arguments(batch)
        cuts: dict[str, Cut] = {}
        for level in sorted({self._level(tap) for tap in taps}):
            graph, group = self._graph(level), [tap for tap in taps if self._level(tap) == level]
            for tap in set(group) - self._verified:
                self._verify(graph, tap, args, named)
            for tap, (value, *context) in zip(group, graph.stem(tuple(group))(*args, **named), strict=True):
                cuts[tap] = Cut(self._whole(value), tuple(context))
        return cuts

    def _verify(self, graph: CutGraph | ReplayedCut, tap: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Compare the two parts with the whole network once, on real rows, bit for bit.

        The second part runs twice on the same cut, which it must not change.
        """
        with evaluated(self.module):
            whole = self.outputs(self.module(*args, **named))
            (live,) = graph.stem((tap,))(*args, **named)
            if isinstance(graph, ReplayedCut):
                # Other rows in between: a replayed layer that keeps state of its last pass fails the comparison.
                self.module(*map(first_rows, args), **{name: first_rows(value) for name, value in named.items()})
            parts = [self.outputs(graph.tail(tap)(*live)) for _ in range(2)]
        for name in ("logits", "embedding"):
            if not all(same_values(getattr(whole, name), getattr(part, name)) for part in parts):
                raise SplitError(f"{self.name} cut at {tap!r} gives other {name} than the whole; cut it elsewhere")
        self._verified.add(tap)

    def outputs(
        self, result: Any, features: Mapping[str, Tensor] | None = None, cuts: Mapping[str, Cut] | None = None
    ) -> Outputs:
        """The module's own result as Outputs."""
        values = self._output_adapter(result) if self._output_adapter is not None else default_give(result, self.name)
        logits, embedding = (self._whole(values.get(name)) for name in ("logits", "embedding"))
        seen = {tap: self._whole(value) for tap, value in (features or {}).items()}
        return Outputs(self.name, logits, embedding, seen, dict(cuts or {}))

    def arguments(self, batch: Batch) -> Arguments:
        """The module's arguments for this batch: positional, and by keyword."""
        if self._input_adapter is not None:
            return self._input_adapter(batch)
        args: list[Any] = []
        named: dict[str, Any] = {}
        for modality in self.reads:
            value = batch.read(modality, self.name)
            if isinstance(value, Tensor):
                args.append(value)
            else:
                named |= value
        dtype = getattr(self.module, "input_dtype", None) or self._dtype()
        if dtype is None:
            return tuple(args), named
        return tuple(cast(value, dtype) for value in args), {name: cast(value, dtype) for name, value in named.items()}

    def _dtype(self) -> torch.dtype | None:
        """The type of all floating-point weights; None where there are several types, or no such weights."""
        if self._types is None:
            self._types = frozenset(p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(iter(self._types)) if len(self._types) == 1 else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Network":
        self._types = None
        # PyTorch leaves this method without annotations.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _whole(self, value: Any) -> Any:
        """An output in float32, where the weights are of lower precision."""
        return value.float() if isinstance(value, Tensor) and {value.dtype, self._dtype()} <= set(LOW) else value

    def frames(self, lengths: Tensor) -> Tensor | None:
        """Valid frames (B,) at every tap of sounds of `lengths` (B,) samples; None: no time axis is known."""
        frames: Callable[[Tensor], Tensor | None] | None = getattr(self.module, "frames", None)
        return frames(lengths) if callable(frames) else None

    def usable(self, batch: Batch) -> tuple[Tensor | None, Batch]:
        """The rows that the network can read (None: all), and the batch of these rows; see `needs`."""
        return usable(batch, self.reads, self.needs, self.absent)

    def probe(self, batch: Batch) -> OutputSpec:
        """Sizes of all outputs, measured by a dry run in eval mode; kept in `spec`."""
        with evaluated(self):
            outputs = self(batch, {Signal.LOGITS, *map(Signal.feature, self.taps)})

        def shape(value: Tensor | None) -> tuple[int, ...] | None:
            return None if value is None else tuple(value.shape[1:])

        features = {tap: tuple(value.shape[1:]) for tap, value in outputs.features.items()}
        native = {tap: self._native(value) for tap, value in outputs.features.items()}
        after, linear = activated(self.module, native, self.activations)
        self.spec = OutputSpec(shape(outputs.logits), shape(outputs.embedding), features, after, linear)
        return self.spec

    def showing(self, taps: Sequence[str], batch: Batch) -> "Network":
        """The same module with further taps; this network keeps its own.

        Raises:
            TapError: a tap names no submodule; the message names the nearest.
        """
        more = [tap for tap in taps if tap not in self.taps]
        if not more:
            return self
        shown = self.holding(self.module, self.factory, (*self.taps, *more))
        shown.training, shown.changing = self.training, self.changing
        shown.probe(batch)
        return shown

    def edited(self, batch: Batch, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Outputs:
        """A whole pass in which each function of `edits` replaces the value at its tap."""
        with ExitStack() as hooks:
            for tap, edit in edits.items():
                self._layer(tap)
                hooks.enter_context(
                    self.module.get_submodule(tap).register_forward_hook(
                        lambda _m, _a, result, edit=edit: edit(self._whole(result)).to(result.dtype)
                    )
                )
            return self.outputs(self._run(batch))

    def split(self, tap: str) -> tuple[Stem, Tail]:
        """The network as two parts: up to and including `tap`, and from there to the end.

        The stem returns everything that is live across the cut (the value at the tap, skips, pooling indices); the
        tail needs nothing else. Parameters are shared with the network.

        Raises:
            SplitError: the module cannot be traced, the tap runs more than once or not at all.
        """
        second = self._graph(self._level(tap)).tail(tap)
        return (
            lambda batch: self.cuts(batch, [tap])[tap],
            lambda cut: self.outputs(second(self._native(cut.value), *cut.context)),
        )

    def _native(self, value: Tensor) -> Tensor:
        """A value at a tap in the type that the layers after it compute in."""
        dtype = self._dtype()
        return value.to(dtype) if dtype in LOW and value.dtype == torch.float32 else value

    def _level(self, tap: str) -> int:
        """The number of taps around this one: a tapped layer is traced whole, so every level has its own graph."""
        self._layer(tap)
        return sum(tap.startswith(f"{other}.") for other in self.taps)

    def _graph(self, level: int) -> CutGraph | ReplayedCut:
        if level not in self._graphs:
            try:
                self._graphs[level] = CutGraph(self.module, [tap for tap in self.taps if self._level(tap) == level])
            except SplitError as error:
                self._graphs[level] = ReplayedCut(self.module, str(error))
        return self._graphs[level]

    def replays(self, tap: str) -> str | None:
        """The reason why a cut replays layers instead of using the traced graph; None where it uses the graph."""
        graph = self._graph(self._level(tap))
        return graph.reason if isinstance(graph, ReplayedCut) else None

    def _layer(self, tap: str) -> None:
        if tap not in self.taps:
            raise TapError(f"{self.name} has no tap {tap!r}; {nearest(tap, self.taps)}")

    def use_compiled(self, wanted: bool) -> None:
        """Switch torch.compile for whole passes on or off; taps and cuts are read without it."""
        # In a tuple: a submodule would register every weight a second time.
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
            inputs = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            raise refused_input(self.name, self.reads, inputs, self.module, str(error)) from error
