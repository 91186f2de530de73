"""Where signals come from. A method cannot tell a live network from a bank, a masked teacher or a fake."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch, Input
from crossdistill.errors import SplitError
from crossdistill.nets.batch_statistics import batch_statistics, is_joint, standing_in
from crossdistill.nets.fill import Fill
from crossdistill.nets.mask import apply_mask
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal
from crossdistill.runtime.code_key import code_key
from crossdistill.runtime.hashing import structure

log = logging.getLogger("crossdistill")

Fetch = Callable[[Tensor, Tensor | None], Batch]
"""Rows by sample id, in the views that are given (None: as they are)."""


@runtime_checkable
class Teacher(Protocol):
    """Anything that gives outputs for a batch; a student answers in the same way."""

    name: str
    modalities: tuple[str, ...]
    spec: OutputSpec

    def __call__(self, batch: Batch) -> Outputs:
        """What was asked for, for the rows whose modalities are present."""
        ...

    def select(self, signals: Iterable[Signal]) -> "Teacher":
        """The same source, asked for these things."""
        ...

    def sees(self, batch: Batch) -> Batch:
        """The rows that this source really looks at: the batch itself, but for the shuffled control."""
        ...

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """From a (rewritten) cut at a tap to the outputs."""
        ...


@runtime_checkable
class Keyed(Protocol):
    """A source whose outputs can be kept in a bank, because everything that they depend on can be named."""

    def wiring(self) -> Any | None:
        """JSON that differs wherever the outputs of equal weights would; None where nothing says that."""
        ...

    def unkeyed(self) -> list[str]:
        """Why `wiring` says nothing: what the outputs may depend on and cannot be named."""
        ...

    def modules(self) -> list[nn.Module]:
        """Modules whose weights the outputs depend on, in an order that `wiring` relies on."""
        ...


class Live:
    """A network that runs on every batch: without gradient, unless the stage trains it.

    Raises:
        SignalError: the network lacks a tap, or the batch a modality.
    """

    def __init__(
        self, name: str, network: Network, signals: Iterable[Signal] = (Signal.LOGITS,), *, trained: bool = False
    ) -> None:
        if network.spec is None:
            raise ValueError(
                f"network {name!r} was never probed: call network.probe(batch) once, so its sizes are known"
            )
        self.name = name
        self.network = network
        self.modalities = network.reads
        self.spec = network.spec
        self.signals = frozenset(signals)
        self.trained = trained
        self._uncut: set[str] = set()

    def select(self, signals: Iterable[Signal]) -> "Live":
        """The same network, asked for these things."""
        found = Live(self.name, self.network, signals, trained=self.trained)
        # One finds out for all that a tap cannot be cut: who runs the stem need not be who goes on from there.
        found._uncut = self._uncut
        return found

    def sees(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch

    def wiring(self) -> Any | None:
        """See `Keyed`; None for a network that trains, depends on the batch, or whose code cannot be keyed."""
        return None if self.trained or self._of_batch() else self.network.wiring()

    def unkeyed(self) -> list[str]:
        """See `Keyed`."""
        return ["it trains"] if self.trained else [*self._of_batch(), *self.network.unkeyed()]

    def _of_batch(self) -> list[str]:
        layers = batch_statistics(self.network, train=False)
        return [f"{', '.join(layers)} normalises by the batch, whichever rows are in it"] if layers else []

    def modules(self) -> list[nn.Module]:
        """See `Keyed`."""
        return [self.network.module]

    def __call__(self, batch: Batch) -> Outputs:
        """Run the network on the rows whose modalities are present; absent inputs are never read."""
        rows, part = self.network.usable(batch)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            outputs = self._none_of(batch) if len(part) == 0 else self._run(part)
        return replace(outputs, source=self.name, rows=rows)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """Go on from a cut; gradients flow through it to the cut's value, also where the network is frozen."""
        if tap not in self._uncut:
            try:
                return partial(self._go_on, tap, self.network.split(tap)[1])
            except SplitError as error:
                self._run_whole(tap, error)
        return partial(self._go_on, tap, None)

    def _go_on(self, tap: str, exact: Callable[[Cut], Outputs] | None, cut: Cut) -> Outputs:
        if len(cut.value) == 0:
            return self._empty(cut.value.sum())
        if exact is None:
            return self.network.edited(cut.context[0], {tap: lambda _: cut.value})
        return exact(cut)

    def _run(self, batch: Batch) -> Outputs:
        cuts = {signal.tap for signal in self.signals if signal.kind == "cut"}
        try:
            exact = self.network.cuts(batch, sorted(cuts - self._uncut))
        except SplitError as error:
            for tap in sorted(cuts):
                self._run_whole(tap, error)
            exact = {}
        # Where no exact cut exists, the cut carries the batch, and going on from it means running all of it again.
        other = {Signal.feature(tap) for tap in cuts & self._uncut}
        plain = {signal for signal in self.signals if signal.kind != "cut"} | other
        outputs = self.network(batch, plain) if plain else Outputs(self.name)
        whole = {tap: Cut(outputs.features[tap], (batch,)) for tap in cuts & self._uncut}
        return replace(outputs, cuts={**exact, **whole})

    def _run_whole(self, tap: str, reason: SplitError) -> None:
        if tap not in self._uncut:
            log.warning(
                "%s: %s; so each time something goes on from its layer %r, all of it runs again", self.name, reason, tap
            )
            self._uncut.add(tap)

    def _none_of(self, batch: Batch) -> Outputs:
        """Outputs for no rows; where batch norms see the rows of all ranks, the network still meets them there."""
        anchor = self._anchor(batch.ids.device)
        if not (self.trained and torch.is_grad_enabled() and is_joint(self.network)):
            return self._empty(anchor)
        with standing_in(self.network):
            ran = self._run(_stand_in(batch, self.modalities))

        def none(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:0] + anchor

        # Nothing of the row is left but the way back through the norms, which the other ranks take too.
        features = {tap: value[:0] + anchor for tap, value in ran.features.items()}
        cuts = {tap: Cut(cut.value[:0] + anchor) for tap, cut in ran.cuts.items()}
        return replace(ran, logits=none(ran.logits), embedding=none(ran.embedding), features=features, cuts=cuts)

    def _anchor(self, device: torch.device) -> Tensor:
        """Zero, which hangs on every weight that trains here: rows that are all absent give zero gradients."""
        zero = torch.zeros((), device=device)
        if not torch.is_grad_enabled():
            return zero
        # A sum over nothing, where a weight times zero would be NaN once the weight is.
        return zero + sum(own.flatten()[:0].sum() for own in self.network.parameters() if own.requires_grad)

    def _empty(self, anchor: Tensor) -> Outputs:
        """Outputs for no rows, without running a network that may refuse them (batch norm does)."""
        taps = {signal.tap: _no_rows(self.spec.features[signal.tap], anchor) for signal in self.signals if signal.tap}
        return Outputs(
            self.name,
            None if self.spec.logits is None else _no_rows(self.spec.logits, anchor),
            None if self.spec.embedding is None else _no_rows(self.spec.embedding, anchor),
            taps,
            {signal.tap: Cut(taps[signal.tap]) for signal in self.signals if signal.kind == "cut"},
        )


def _stand_in(batch: Batch, modalities: Iterable[str]) -> Batch:
    """One row of no meaning, of the batch's shape: a ramp, which no norm divides by zero, or whole zeros."""

    def row(value: Tensor) -> Tensor:
        size = (1, *value.shape[1:])
        if not value.is_floating_point():
            return value.new_zeros(size)
        return torch.linspace(0, 1, torch.Size(size).numel(), dtype=value.dtype, device=value.device).view(size)

    inputs: dict[str, Input] = {}
    for name in modalities:
        value = batch.read(name)
        inputs[name] = row(value) if isinstance(value, Tensor) else {key: row(part) for key, part in value.items()}
    return Batch(inputs, batch.ids.new_zeros(1), total_rows=batch.total_rows)


def _no_rows(shape: tuple[int, ...], anchor: Tensor) -> Tensor:
    return torch.zeros((0, *shape), device=anchor.device) + anchor


class Masked:
    """A frozen teacher whose values at one or more taps are weighted by mask networks: a specialised teacher.

    With several masks they act in one pass, each on what the ones before it left, as the released MST-Distill does.
    """

    def __init__(self, name: str, base: Live, masks: Mapping[str, nn.Module]) -> None:
        self.name = name
        self.base = base
        self.masks = dict(masks)
        self.modalities = base.modalities
        self.spec = OutputSpec(logits=base.spec.logits, embedding=base.spec.embedding)

    def select(self, signals: Iterable[Signal]) -> "Masked":
        """The same teacher: it always gives logits (and the embedding, where its base does)."""
        return self

    def sees(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """Not cut again: its base is."""
        raise SplitError(f"{self.name!r} is a masked teacher; cut its base {self.base.name!r} at {tap!r} instead")

    def wiring(self) -> Any | None:
        """See `Keyed`: the base's, and which masks stand at which taps."""
        if self.unkeyed():
            return None
        masks = [[tap, structure(mask), code_key(mask=mask).text()] for tap, mask in self.masks.items()]
        return [self.base.wiring(), masks]

    def unkeyed(self) -> list[str]:
        """See `Keyed`."""
        own = [fault for mask in self.masks.values() for fault in code_key(mask=mask).faults.values()]
        return [*self.base.unkeyed(), *own]

    def modules(self) -> list[nn.Module]:
        """See `Keyed`: the base's, then the masks."""
        return [*self.base.modules(), *self.masks.values()]

    @torch.no_grad()
    def continued(self, given: Outputs) -> Outputs:
        """From the base's outputs with the cut at the one masked tap, which may come from a bank."""
        ((tap, mask),) = self.masks.items()
        cut = given.cuts[tap]
        if len(cut.value) == 0:
            # Not run at all: it may refuse no rows.
            shapes = (self.spec.logits, self.spec.embedding)
            logits, embedding = (None if s is None else cut.value.new_zeros((0, *s)) for s in shapes)
            return Outputs(self.name, logits, embedding, rows=given.rows)
        outputs = self.base.tail(tap)(cut.rewritten(self._rewritten(cut.value, mask)))
        return replace(outputs, source=self.name, rows=given.rows)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Outputs of the base with its taps masked."""
        if len(self.masks) == 1:
            return self.continued(self.base.select(map(Signal.cut, self.masks))(batch))
        rows, part = self.base.network.usable(batch)
        if len(part) == 0:
            return replace(self.base.select({Signal.LOGITS})(batch), source=self.name)
        edits = {tap: lambda value, mask=mask: self._rewritten(value, mask) for tap, mask in self.masks.items()}
        return replace(self.base.network.edited(part, edits), source=self.name, rows=rows)

    def _rewritten(self, value: Tensor, mask: nn.Module) -> Tensor:
        """What goes on from a tap instead of its value."""
        return apply_mask(value, mask(value))


class Filled(Masked):
    """A frozen teacher some of whose units at a tap are replaced by what they are on average (MGDFR)."""

    def unkeyed(self) -> list[str]:
        """See `Keyed`; also where a row's output depends on the other rows of its batch."""
        alone = all(isinstance(fill, Fill) and fill.by_row for fill in self.masks.values())
        return [*super().unkeyed(), *([] if alone else ["what it gives for a row depends on the rest of the batch"])]

    def _rewritten(self, value: Tensor, mask: nn.Module) -> Tensor:
        """The value as its `Fill` leaves it."""
        filled: Tensor = mask(value)
        return filled


class Shuffled:
    """The control: a teacher that looks at other rows than the batch's, by one fixed permutation."""

    def __init__(self, base: Teacher, partner: Tensor, fetch: Fetch) -> None:
        """`partner` maps each sample id to the id that is looked at instead; `fetch` brings rows by id and view."""
        self.name = base.name
        self.base = base
        self.modalities = base.modalities
        self.spec = base.spec
        self.partner = partner
        self.fetch = fetch

    def select(self, signals: Iterable[Signal]) -> "Shuffled":
        """The same control over the base, asked for these things."""
        return Shuffled(self.base.select(signals), self.partner, self.fetch)

    def partner_of(self, ids: Tensor) -> Tensor:
        """The sample ids that are looked at instead of these."""
        if self.partner.device != ids.device:
            self.partner = self.partner.to(ids.device)
        return self.partner[ids]

    def sees(self, batch: Batch) -> Batch:
        """The partners' rows, whole: every modality and the target."""
        other = self.fetch(self.partner_of(batch.ids), batch.view)
        return replace(other.to(batch.ids.device), total_rows=batch.total_rows)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The base's own."""
        return self.base.tail(tap)

    def __call__(self, batch: Batch) -> Outputs:
        """The base's outputs for the partners' rows."""
        return self.base(self.sees(batch))
