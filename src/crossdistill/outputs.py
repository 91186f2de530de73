"""Outputs of a network, their sizes, and the rows that they belong to."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.errors import SignalError, nearest


@dataclass(frozen=True, slots=True, order=True)
class Signal:
    """One output of a network: its logits, its embedding, the value at a tap, or an exact cut at a tap."""

    kind: str
    tap: str = ""

    LOGITS: ClassVar["Signal"]
    EMBEDDING: ClassVar["Signal"]

    @classmethod
    def feature(cls, tap: str) -> "Signal":
        """The value at a named layer."""
        return cls("feature", tap)

    @classmethod
    def cut(cls, tap: str) -> "Signal":
        """The value at a named layer with all else that is live there, from which the network can continue."""
        return cls("cut", tap)

    def __str__(self) -> str:
        """The form used in messages and keys: "logits", "feature:fc1"."""
        return f"{self.kind}:{self.tap}" if self.tap else self.kind


Signal.LOGITS = Signal("logits")
Signal.EMBEDDING = Signal("embedding")


@dataclass(frozen=True, slots=True)
class Cut:
    """All that is live across a cut: the value at the tap, and the rest (skips, pooling indices)."""

    value: Tensor
    context: tuple[Any, ...] = ()

    def rewritten(self, value: Tensor) -> "Cut":
        """The same cut with another value at the tap."""
        return Cut(value, self.context)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Sizes of a network's outputs, known before the first step: they determine the sizes of projectors and masks.

    Shapes are without the batch dimension: logits (C,) or (C, H, W), embedding (D,), features by tap.
    """

    logits: tuple[int, ...] | None = None
    embedding: tuple[int, ...] | None = None
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    activated: Mapping[str, str] = field(default_factory=dict)
    """For taps around an activation: the tap after it, by the tap before it."""
    linear: tuple[str, ...] = ()
    """Taps that no activation follows, such as those of MobileNetV2's linear bottlenecks, where that is known."""

    @property
    def classes(self) -> int:
        """C, the number of classes.

        Raises:
            SignalError: the network has no logits.
        """
        if self.logits is None:
            raise SignalError("the network has no logits, so its number of classes is unknown")
        return self.logits[0]

    def feature(self, tap: str, who: str) -> tuple[int, ...]:
        """Shape at a tap.

        Raises:
            SignalError: the network has no such tap; the message names the nearest.
        """
        if tap not in self.features:
            raise SignalError(f"{who} has no tap {tap!r}; {nearest(tap, self.features)}")
        return self.features[tap]

    def no_rows(self, source: str, signals: Collection[Signal], anchor: Tensor) -> "Outputs":
        """Outputs for no rows, without a pass: some networks refuse an empty batch (batch norm does).

        `anchor` is a zero () that every output is computed from, so that backward passes reach it.
        """

        def empty(shape: tuple[int, ...]) -> Tensor:
            return torch.zeros((0, *shape), device=anchor.device) + anchor

        taps = {signal.tap: empty(self.features[signal.tap]) for signal in signals if signal.tap}
        return Outputs(
            source,
            None if self.logits is None else empty(self.logits),
            None if self.embedding is None else empty(self.embedding),
            taps,
            {signal.tap: Cut(taps[signal.tap]) for signal in signals if signal.kind == "cut"},
        )


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a network for a batch: logits (B, C[, H, W]), embedding (B, D), values and cuts by tap.

    `rows` are the rows of the batch that the network read (own domain, modality present); None means all of them. The
    tensors then have `len(rows)` rows, so that nothing is computed on, or read from, an absent input.
    """

    source: str
    logits: Tensor | None = None
    embedding: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    rows: Int64[Tensor, " R"] | None = None
    lengths: Mapping[str, Tensor] = field(default_factory=dict)

    def need(self, signal: Signal) -> Tensor:
        """The tensor of a signal.

        Raises:
            SignalError: these outputs do not contain it; the message names those that they contain.
        """
        value: Tensor | None
        if signal.kind == "feature":
            value = self.features.get(signal.tap)
        elif signal.kind == "cut":
            value = self.cuts[signal.tap].value if signal.tap in self.cuts else None
        else:
            value = self.embedding if signal == Signal.EMBEDDING else self.logits
        if value is None:
            raise SignalError(f"{self.source!r} gave no {signal}; it gave {', '.join(self.given()) or 'nothing'}")
        return value

    def given(self) -> list[str]:
        """Names of all signals in these outputs, for messages."""
        names = [str(Signal.LOGITS)] * (self.logits is not None) + [str(Signal.EMBEDDING)] * (
            self.embedding is not None
        )
        return names + [f"feature:{tap}" for tap in self.features] + [f"cut:{tap}" for tap in self.cuts]

    def detached(self) -> "Outputs":
        """The same values without their graph."""
        return replace(
            self,
            logits=None if self.logits is None else self.logits.detach(),
            embedding=None if self.embedding is None else self.embedding.detach(),
            features={tap: value.detach() for tap, value in self.features.items()},
            cuts={tap: Cut(cut.value.detach()) for tap, cut in self.cuts.items()},
        )

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of a batch-long tensor that belong to these outputs, such as the targets of the logits."""
        return tensor if self.rows is None else tensor[self.rows]


def shared_rows(first: Outputs, second: Outputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Positions of the rows that both have: in the first, in the second and in the batch; None: all, in order."""
    if first.rows is None and second.rows is None:
        return None, None, None
    if first.rows is None:
        return second.rows, None, second.rows
    if second.rows is None:
        return None, first.rows, first.rows
    mine, theirs = torch.isin(first.rows, second.rows), torch.isin(second.rows, first.rows)
    return mine.nonzero().flatten(), theirs.nonzero().flatten(), first.rows[mine]


def picked(value: Tensor, rows: Tensor | None) -> Tensor:
    """These rows of a tensor; None: all of them."""
    return value if rows is None else value[rows]


def aligned(first: Outputs, second: Outputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of two sources on the rows that both have, and those rows (None: all rows of the batch)."""
    mine, theirs, rows = shared_rows(first, second)
    return picked(first.need(Signal.LOGITS), mine), picked(second.need(Signal.LOGITS), theirs), rows


def same_values(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two optional outputs are equal, bit for bit; NaN equals NaN."""
    if first is None or second is None:
        return first is second
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def spread(outputs: Outputs, num_rows: int) -> tuple[Tensor, Tensor]:
    """Logits for all rows of the batch, zeros in rows that the source lacks, and the mask of rows that it has."""
    logits = outputs.need(Signal.LOGITS)
    if outputs.rows is None:
        return logits, torch.ones(num_rows, dtype=torch.bool, device=logits.device)
    whole = logits.new_zeros((num_rows, *logits.shape[1:])).index_copy(0, outputs.rows, logits)
    seen = torch.zeros(num_rows, dtype=torch.bool, device=logits.device).index_fill(0, outputs.rows, True)
    return whole, seen


def zero_of(parameters: Iterable[Tensor], device: torch.device) -> Tensor:
    """Zero (), whose backward pass sets a gradient of zeros for each parameter that trains."""
    zero = torch.zeros((), device=device)
    if not torch.is_grad_enabled():
        return zero
    # A sum over no entries: zero times a weight would be NaN where the weight is NaN.
    return zero + sum(weight.flatten()[:0].sum() for weight in parameters if weight.requires_grad)
