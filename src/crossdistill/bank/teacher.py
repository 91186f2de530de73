"""Teachers whose outputs are read from banks, with the same interface as live ones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from crossdistill.bank.bank import Bank
from crossdistill.batch import Batch
from crossdistill.outputs import Cut, Outputs, Signal
from crossdistill.teacher import Teacher, TeacherBase


class Banked(TeacherBase):
    """A frozen source whose outputs are read from banks by sample id; outputs without a bank are computed live.

    `banks` hold outputs of one network, by signal, all for the same samples. A banked cut is continued by the tail of
    the live network.
    """

    def __init__(self, live: Teacher, banks: Mapping[Signal, Bank], signals: Iterable[Signal]) -> None:
        self._base = TeacherBase.of(live)
        self.name = live.name
        self.modalities = live.modalities
        self.spec = live.spec
        self.banks = dict(banks)
        self.signals = frozenset(signals)
        rest = self.signals - set(self.banks)
        self._rest = self.base.select(rest) if rest else None
        self._read = [(signal, self.banks[signal]) for signal in sorted(self.signals & set(self.banks))]
        self._types = {signal: getattr(torch, bank.key.gives) for signal, bank in self._read}

    @property
    def inputs_needed(self) -> tuple[str, ...]:
        """Modalities that the live network needs; empty if every selected output is banked."""
        return () if self._rest is None else self._rest.inputs_needed

    def select(self, signals: Iterable[Signal]) -> "Banked":
        """The same source, restricted to these signals."""
        return Banked(self.base, self.banks, signals)

    def unkeyed(self) -> list[str]:
        """The reason why this teacher is not banked again; see `TeacherBase`."""
        return ["it is read from banks already"]

    def modules(self) -> list[nn.Module]:
        """The modules of the live teacher; see `TeacherBase`."""
        return self.base.modules()

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        """The function from a (rewritten) cut to the outputs, through the live network."""
        return self.base.tail(tap)

    def __call__(self, batch: Batch) -> Outputs:
        """The selected signals of the rows whose modalities are present.

        Raises:
            BankMissing: the bank lacks a sample.
        """
        outputs = Outputs(self.name) if self._rest is None else replace(self._rest(batch), source=self.name)
        if not self._read:
            return outputs
        first = self._read[0][1]
        at = first.rows.find(batch.ids, batch.view)
        seen = first.seen(at)
        rows = None if seen is None else seen.nonzero().flatten()
        at = at if rows is None else at.index_select(0, rows)
        values = {signal: bank.take(at).to(self._types[signal]) for signal, bank in self._read}
        cuts = {signal.tap: Cut(value) for signal, value in values.items() if signal.kind == "cut"}
        features = {signal.tap: value for signal, value in values.items() if signal.kind == "feature"}
        return replace(
            outputs,
            logits=values.get(Signal.LOGITS, outputs.logits),
            embedding=values.get(Signal.EMBEDDING, outputs.embedding),
            features={**outputs.features, **features},
            cuts={**outputs.cuts, **cuts},
            rows=rows,
        )
