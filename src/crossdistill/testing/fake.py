"""A teacher without a network: outputs depend on the sample id alone, and all requests are recorded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal
from crossdistill.runtime.hashing import derived_seed
from crossdistill.teacher import TeacherBase


@dataclass(slots=True)
class Record:
    """Requests to a fake teacher: the signals of each `select`, and the sample ids of each call."""

    signals: list[frozenset[Signal]] = field(default_factory=list)
    ids: list[Int64[Tensor, " R"]] = field(default_factory=list)


class FakeTeacher(TeacherBase):
    """A teacher of any sizes for tests of methods: no network, no weights, the same numbers on every machine.

    Each output is a fixed function of the sample id, about 1 in size and different for every id and unit. `given`
    replaces it by rows of your own, indexed by sample id. As for every teacher, outputs are for the rows whose
    modalities are present. A cut is possible at every tap of its `spec`, with a fixed linear map to the logits as tail.

    `record` is shared with every teacher that `select` returns.
    """

    def __init__(
        self,
        name: str,
        spec: OutputSpec,
        modalities: tuple[str, ...] = (),
        *,
        signals: Iterable[Signal] | None = None,
        given: Mapping[Signal, Tensor] | None = None,
        record: Record | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self.modalities = modalities
        self.given = dict(given or {})
        self.record = Record() if record is None else record
        self._wants = frozenset({Signal.LOGITS} if signals is None else signals)

    def select(self, signals: Iterable[Signal]) -> "FakeTeacher":
        """The same teacher for these signals; the request is recorded."""
        signals = frozenset(signals)
        self.record.signals.append(signals)
        return FakeTeacher(self.name, self.spec, self.modalities, signals=signals, given=self.given, record=self.record)

    def __call__(self, batch: Batch) -> Outputs:
        """Exactly the selected signals, for the rows whose modalities are present.

        Raises:
            SignalError: a selected tap is missing in its `spec`.
        """
        present = batch.rows_with(self.modalities)
        rows = None if present is None else present.nonzero().flatten()
        ids = batch.ids if rows is None else batch.ids[rows]
        self.record.ids.append(ids)
        kinds = {signal.kind for signal in self._wants}
        return Outputs(
            self.name,
            logits=self._value(Signal.LOGITS, ids, self.spec.logits) if "logits" in kinds else None,
            embedding=self._value(Signal.EMBEDDING, ids, self.spec.embedding) if "embedding" in kinds else None,
            features={signal.tap: self._at(signal.tap, ids) for signal in self._wants if signal.kind == "feature"},
            cuts={signal.tap: Cut(self._at(signal.tap, ids)) for signal in self._wants if signal.kind == "cut"},
            rows=rows,
        )

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """A fixed linear map from the tap's value to the logits."""
        shape = self.spec.feature(tap, self.name)
        assert self.spec.logits is not None
        inputs, outputs = torch.Size(shape).numel(), torch.Size(self.spec.logits).numel()
        weight = self._waves(torch.arange(inputs), outputs, f"tail of {tap}") / inputs**0.5

        def go_on(cut: Cut) -> Outputs:
            logits = cut.value.flatten(1) @ weight.to(cut.value)
            return Outputs(self.name, logits.reshape(len(cut.value), *(self.spec.logits or ())))

        return go_on

    def _at(self, tap: str, ids: Tensor) -> Tensor:
        value = self._value(Signal.feature(tap), ids, self.spec.feature(tap, self.name))
        assert value is not None
        return value

    def _value(self, signal: Signal, ids: Tensor, shape: tuple[int, ...] | None) -> Tensor | None:
        if signal in self.given:
            return self.given[signal].to(ids.device)[ids]
        if shape is None:
            return None
        return self._waves(ids, torch.Size(shape).numel(), str(signal)).reshape(len(ids), *shape)

    def _waves(self, ids: Tensor, size: int, what: str) -> Tensor:
        """One row of `size` numbers for each id: incommensurable waves, so that no two rows are equal."""
        source = torch.Generator().manual_seed(derived_seed("fake", self.name, what))
        # Drawn on the CPU in double precision, so that numbers are equal on every device and in every order of rows.
        pace, phase = torch.rand((2, size), generator=source, dtype=torch.float64)
        waves = torch.sin(ids.cpu().double().unsqueeze(1) * (0.5 + pace) + 6.3 * phase)
        return (1.5 * waves).float().to(ids.device)
