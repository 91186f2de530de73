"""Sources of signals, with one interface for live networks, banks, masked teachers and test doubles."""

import abc
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SplitError
from crossdistill.nets.batch_statistics import batch_statistics, is_joint, one_row_like, standing_in
from crossdistill.nets.fill import Fill
from crossdistill.nets.mask import apply_mask
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal, zero_of
from crossdistill.runtime.code_key import code_key
from crossdistill.runtime.hashing import structure

log = logging.getLogger("crossdistill")

Fetch = Callable[[Tensor, Tensor | None], Batch]
"""Rows by sample id, in the given views (None: without augmentation)."""


@runtime_checkable
class Teacher(Protocol):
    """The interface of teachers and of the student for methods; any class with these members is a valid teacher."""

    name: str
    modalities: tuple[str, ...]
    """Modalities of the inputs; a row without one of them has no outputs."""
    spec: OutputSpec

    @abc.abstractmethod
    def __call__(self, batch: Batch) -> Outputs:
        """The selected outputs, for the rows whose modalities are present."""

    def select(self, signals: Iterable[Signal]) -> "Teacher":
        """The same teacher with calls that return these outputs."""

    def sees(self, batch: Batch) -> Batch:
        """The rows whose outputs a call returns: the batch itself, except under the shuffled control."""

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The part of the network after a tap: from a (possibly changed) cut to the outputs."""


class TeacherBase(Teacher):
    """The full protocol: a `Teacher`, plus the members that planning, banks, controls and masks use, with defaults.

    A subclass sets `name`, `modalities` and `spec`, and defines `__call__` and `select`. With the defaults, its outputs
    are computed for every batch and never stored. `TeacherBase.of` gives the defaults to any other `Teacher`.
    """

    name: str
    modalities: tuple[str, ...]
    spec: OutputSpec
    network: Network | None = None
    """The network that a call runs; without one, the teacher is not trained, compiled, masked, or cut for a bank."""
    trained: bool = False
    """Whether the stage trains it, so that outputs have a gradient."""
    masked_tap: str | None = None
    """The tap of `base` from whose cut `continued` computes the outputs; None: no cut is used."""
    _base: "TeacherBase | None" = None

    @staticmethod
    def of(teacher: Teacher) -> "TeacherBase":
        """The teacher itself if it is a `TeacherBase`, else a wrapper with the default members."""
        return teacher if isinstance(teacher, TeacherBase) else _WithDefaults(teacher)

    @abc.abstractmethod
    def select(self, signals: Iterable[Signal]) -> "TeacherBase":
        """See `Teacher`."""

    def sees(self, batch: Batch) -> Batch:
        """See `Teacher`; the batch itself."""
        return batch

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """See `Teacher`.

        Raises:
            SplitError: the teacher cannot be cut.
        """
        raise SplitError(f"{self.name!r} cannot be cut at {tap!r}: its class defines no `tail`")

    @property
    def base(self) -> "TeacherBase":
        """The teacher wrapped by this one (with masks, a bank or the control); itself if it wraps none."""
        return self if self._base is None else self._base

    @property
    def unshuffled(self) -> "TeacherBase":
        """The teacher without the shuffled control."""
        return self

    def reshuffle(self, teacher: "TeacherBase") -> "TeacherBase":
        """Another teacher under this one's shuffled control; unchanged if this one has none."""
        return teacher

    @property
    def inputs_needed(self) -> tuple[str, ...]:
        """Modalities whose values a call reads from the batch; stored outputs need only the sample ids."""
        return self.modalities

    def continued(self, outputs: Outputs) -> Outputs:
        """The outputs, from those of `base` (with its cut at `masked_tap`): teachers of one network share its pass."""
        return outputs

    def wiring(self) -> Any | None:
        """JSON for a bank's key: differs if outputs under equal weights may differ. None: no bank is filled."""
        return None

    def unkeyed(self) -> list[str]:
        """The reasons why `wiring` is None: dependencies of the outputs that have no key."""
        return [f"a {type(self).__name__} has no `wiring`"]

    def modules(self) -> list[nn.Module]:
        """Modules whose weights the outputs depend on, in the order that `wiring` assumes."""
        return []


class _WithDefaults(TeacherBase):
    """A wrapped `Teacher`; if its class defines all three members of a bank's key, these are used."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        members, key = ["name", "modalities", "spec", "sees", "tail"], ["wiring", "unkeyed", "modules"]
        if all(callable(getattr(teacher, member, None)) for member in key):
            members += key
        vars(self).update({member: getattr(teacher, member) for member in members})

    def __call__(self, batch: Batch) -> Outputs:
        return self._teacher(batch)

    def select(self, signals: Iterable[Signal]) -> TeacherBase:
        return TeacherBase.of(self._teacher.select(signals))

    def unkeyed(self) -> list[str]:
        return [f"a {type(self._teacher).__name__} has no `wiring`"]


class Live(TeacherBase):
    """A network that runs on every batch: without gradient, unless the stage trains it.

    Raises:
        SignalError: the network lacks a tap, or the batch lacks a modality.
    """

    network: Network

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
        """The same network with calls that return these outputs."""
        selected = Live(self.name, self.network, signals, trained=self.trained)
        # Shared, because stem and tail may be run by different objects.
        selected._uncut = self._uncut
        return selected

    def wiring(self) -> Any | None:
        """See `TeacherBase`; None for a network that trains, depends on the batch, or whose code has no key."""
        return None if self.trained or self._of_batch() else self.network.wiring()

    def unkeyed(self) -> list[str]:
        """See `TeacherBase`."""
        return ["it trains"] if self.trained else [*self._of_batch(), *self.network.unkeyed()]

    def _of_batch(self) -> list[str]:
        layers = batch_statistics(self.network, train=False)
        return [f"{', '.join(layers)} normalises by the statistics of the batch"] if layers else []

    def modules(self) -> list[nn.Module]:
        """See `TeacherBase`."""
        return [self.network.module]

    def __call__(self, batch: Batch) -> Outputs:
        """Run the network on the rows whose modalities are present; absent inputs are not read."""
        rows, part = self.network.usable(batch)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            outputs = self._no_rows(batch) if len(part) == 0 else self._run(part)
        return replace(outputs, source=self.name, rows=rows)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """Continue from a cut, with gradients to the cut's value also if the network is frozen."""
        if tap not in self._uncut:
            try:
                return partial(self._go_on, tap, self.network.split(tap)[1])
            except SplitError as error:
                self._run_whole(tap, error)
        return partial(self._go_on, tap, None)

    def _go_on(self, tap: str, exact: Callable[[Cut], Outputs] | None, cut: Cut) -> Outputs:
        if len(cut.value) == 0:
            return self.spec.no_rows(self.name, self.signals, cut.value.sum())
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
        # Without an exact cut, the cut holds the batch, and its continuation runs the whole network again.
        other = {Signal.feature(tap) for tap in cuts & self._uncut}
        plain = {signal for signal in self.signals if signal.kind != "cut"} | other
        # A frozen network gives what is read of it, and no more: see `Network.forward`.
        outputs = self.network(batch, plain, only=not self.trained) if plain else Outputs(self.name)
        whole = {tap: Cut(outputs.features[tap], (batch,)) for tap in cuts & self._uncut}
        return replace(outputs, cuts={**exact, **whole})

    def _run_whole(self, tap: str, reason: SplitError) -> None:
        if tap not in self._uncut:
            log.warning(
                "%s: %s; each continuation from its layer %r therefore runs the whole network", self.name, reason, tap
            )
            self._uncut.add(tap)

    def _no_rows(self, batch: Batch) -> Outputs:
        """Outputs for no rows; with batch norms over all ranks, the network still takes part in their exchange."""
        anchor = zero_of(self.network.parameters(), batch.ids.device)
        if not (self.trained and torch.is_grad_enabled() and is_joint(self.network)):
            return self.spec.no_rows(self.name, self.signals, anchor)
        with standing_in(self.network):
            ran = self._run(one_row_like(batch, self.modalities))

        def none(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:0] + anchor

        # Only the graph through the norms is kept, since the other ranks also run its backward pass.
        features = {tap: value[:0] + anchor for tap, value in ran.features.items()}
        cuts = {tap: Cut(cut.value[:0] + anchor) for tap, cut in ran.cuts.items()}
        return replace(ran, logits=none(ran.logits), embedding=none(ran.embedding), features=features, cuts=cuts)


class Masked(TeacherBase):
    """A specialised teacher: a frozen network with mask networks at one or more taps.

    Several masks act in one pass, each on the values masked by the earlier ones, as in the released MST-Distill.
    """

    def __init__(self, name: str, base: Teacher, masks: Mapping[str, nn.Module]) -> None:
        """`masks`: the mask networks by tap.

        Raises:
            ApplicabilityError: the base is not a network.
        """
        self.name = name
        self._base = TeacherBase.of(base)
        if self.base.network is None:
            raise ApplicabilityError(f"{name!r} masks layers of a network, and {base.name!r} is no plain network")
        self._network = self.base.network
        self.masks = dict(masks)
        self.masked_tap = next(iter(self.masks)) if len(self.masks) == 1 else None
        self.modalities = base.modalities
        self.spec = OutputSpec(logits=base.spec.logits, embedding=base.spec.embedding)

    def select(self, signals: Iterable[Signal]) -> "Masked":
        """The same teacher: calls always return logits (and the embedding, if the base has one)."""
        return self

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """Not supported: only the base is cut."""
        raise SplitError(f"{self.name!r} is a masked teacher; cut its base {self.base.name!r} at {tap!r} instead")

    def wiring(self) -> Any | None:
        """See `TeacherBase`: the base's wiring, and the masks by tap."""
        if self.unkeyed():
            return None
        masks = [[tap, structure(mask), code_key(mask=mask).text()] for tap, mask in self.masks.items()]
        return [self.base.wiring(), masks]

    def unkeyed(self) -> list[str]:
        """See `TeacherBase`."""
        faults = [fault for mask in self.masks.values() for fault in code_key(mask=mask).faults.values()]
        return [*self.base.unkeyed(), *faults]

    def modules(self) -> list[nn.Module]:
        """See `TeacherBase`: the base's modules, then the masks."""
        return [*self.base.modules(), *self.masks.values()]

    @torch.no_grad()
    def continued(self, outputs: Outputs) -> Outputs:
        """See `TeacherBase`; the cut at the one masked tap may come from a bank."""
        ((tap, mask),) = self.masks.items()
        cut = outputs.cuts[tap]
        if len(cut.value) == 0:
            # Not run: the network may reject an empty batch.
            shapes = (self.spec.logits, self.spec.embedding)
            logits, embedding = (None if s is None else cut.value.new_zeros((0, *s)) for s in shapes)
            return Outputs(self.name, logits, embedding, rows=outputs.rows)
        masked = self.base.tail(tap)(cut.rewritten(self._rewritten(cut.value, mask)))
        return replace(masked, source=self.name, rows=outputs.rows)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """The outputs of the base with its taps masked."""
        if self.masked_tap is not None:
            return self.continued(self.base.select({Signal.cut(self.masked_tap)})(batch))
        rows, part = self._network.usable(batch)
        if len(part) == 0:
            return replace(self.base.select({Signal.LOGITS})(batch), source=self.name)
        edits = {tap: lambda value, mask=mask: self._rewritten(value, mask) for tap, mask in self.masks.items()}
        return replace(self._network.edited(part, edits), source=self.name, rows=rows)

    def _rewritten(self, value: Tensor, mask: nn.Module) -> Tensor:
        """The masked value, which replaces the tap's value in the rest of the network."""
        return apply_mask(value, mask(value))


class Filled(Masked):
    """A frozen teacher with some units at a tap replaced by their means (MGDFR)."""

    def unkeyed(self) -> list[str]:
        """See `TeacherBase`; also given if a row's output depends on the other rows of its batch."""
        alone = all(isinstance(fill, Fill) and fill.by_row for fill in self.masks.values())
        return [*super().unkeyed(), *([] if alone else ["its output for a row depends on the rest of the batch"])]

    def _rewritten(self, value: Tensor, mask: nn.Module) -> Tensor:
        """The value after its `Fill`."""
        filled: Tensor = mask(value)
        return filled


class Shuffled(TeacherBase):
    """The shuffled control: a teacher whose outputs are those of other rows, by one fixed permutation."""

    def __init__(self, base: Teacher, partner: Tensor, fetch: Fetch) -> None:
        """`partner` maps each sample id to the id of its replacement; `fetch` returns rows by id and view."""
        self._base = TeacherBase.of(base)
        self.name, self.modalities, self.spec = base.name, base.modalities, base.spec
        self.trained = self.base.trained
        self.partner = partner
        self.fetch = fetch

    @property
    def unshuffled(self) -> TeacherBase:
        """The wrapped teacher, `base`."""
        return self.base

    def reshuffle(self, teacher: TeacherBase) -> "Shuffled":
        """Another teacher under the same permutation."""
        return Shuffled(teacher, self.partner, self.fetch)

    @property
    def inputs_needed(self) -> tuple[str, ...]:
        """Empty: the rows of the partners are fetched."""
        return ()

    def select(self, signals: Iterable[Signal]) -> "Shuffled":
        """The same control over the base, with calls that return these outputs."""
        return self.reshuffle(self.base.select(signals))

    def modules(self) -> list[nn.Module]:
        """See `TeacherBase`: the modules of the base."""
        return self.base.modules()

    def partner_of(self, ids: Tensor) -> Tensor:
        """The sample ids of the replacement rows."""
        if self.partner.device != ids.device:
            self.partner = self.partner.to(ids.device)
        return self.partner[ids]

    def sees(self, batch: Batch) -> Batch:
        """The complete replacement rows: every modality and the target."""
        other = self.fetch(self.partner_of(batch.ids), batch.view)
        return replace(other.to(batch.ids.device), total_rows=batch.total_rows)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The tail of the base."""
        return self.base.tail(tap)

    def __call__(self, batch: Batch) -> Outputs:
        """The base's outputs for the replacement rows, which are fetched only if the base reads more than their ids."""
        # A base without modalities may read the targets.
        if self.base.inputs_needed or not self.modalities:
            return self.base(self.sees(batch))
        ids = self.partner_of(batch.ids)
        return self.base(Batch(inputs={}, ids=ids, view=batch.view, total_rows=batch.total_rows))
